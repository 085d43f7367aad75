"""The parent's loop and its duties."""
