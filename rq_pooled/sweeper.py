"""The path of the function that jobs of rq-scheduler name: they stay in Redis for as long as sweeps are to come."""

from .failed.sweeper import sweep

__all__ = ["sweep"]
