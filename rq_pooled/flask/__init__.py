"""`RQPooled`: the Flask extension, its page and its endpoints."""

from .extension import RQPooled
from .rights import RIGHTS, WRITE

__all__ = ["RIGHTS", "WRITE", "RQPooled"]
