"""Settings of rq_pooled: the table, where values come from, and every check of them."""

from .secrets import scrub, scrub_url
from .settings import Settings

__all__ = ["Settings", "scrub", "scrub_url"]
