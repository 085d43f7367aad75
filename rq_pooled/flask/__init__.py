"""`RQPooled`: the Flask extension, its page and its endpoints."""

from .extension import RQPooled

__all__ = ["RQPooled"]
