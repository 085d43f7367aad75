"""`Queue`, and what may refuse an enqueue."""

from .queue import Queue

__all__ = ["Queue"]
