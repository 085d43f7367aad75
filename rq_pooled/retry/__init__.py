"""Retries: how long to wait before trying again, and what a job may raise about its own retry."""

from .backoff import Backoff, GiveUp, RetryAfter

__all__ = ["Backoff", "GiveUp", "RetryAfter"]
