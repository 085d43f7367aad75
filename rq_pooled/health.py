"""Health, statistics, queues, failed jobs and connections as plain dictionaries; docs/monitoring.md has their keys."""

from .monitoring.health import connections, failed_jobs, health, health_word, pool_stats, processes, queues

__all__ = ["connections", "failed_jobs", "health", "health_word", "pool_stats", "processes", "queues"]
