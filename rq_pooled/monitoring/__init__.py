"""Health, statistics, metrics and the guard of connections."""
