"""What runs inside a horse."""
