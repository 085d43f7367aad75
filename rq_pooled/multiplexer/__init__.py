"""Lets jobs use Redis through the parent: their streams, and the connections that these share."""
