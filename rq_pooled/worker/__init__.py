"""RQ's Worker in front of the parent."""
