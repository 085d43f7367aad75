"""Health, statistics, queues, throughput, failed jobs and connections as plain dictionaries; see docs/monitoring.md.

Keys are stable: new ones may come, none changes its meaning. Values are numbers, texts, lists, dictionaries and None,
fit for JSON. No password appears in any of them.
"""

from .failed.listing import failed_jobs
from .monitoring.guard import connections
from .monitoring.health import health, health_word
from .monitoring.processes import pool_stats, processes
from .monitoring.queues import queues
from .monitoring.throughput import throughput

__all__ = ["connections", "failed_jobs", "health", "health_word", "pool_stats", "processes", "queues", "throughput"]
