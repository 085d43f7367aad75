"""`RQPooled`: the Flask extension, its page and its endpoints; `page_app`: the page alone, as a WSGI application."""

from .extension import RQPooled
from .rights import RIGHTS, WRITE
from .standalone import page_app

__all__ = ["RIGHTS", "WRITE", "RQPooled", "page_app"]
