"""Settings of rq_pooled: the table, where values come from, and every check of them."""

from .settings import Settings, scrub, scrub_url

__all__ = ["Settings", "scrub", "scrub_url"]
