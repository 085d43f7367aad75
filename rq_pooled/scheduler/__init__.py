"""rq-scheduler on the pool."""
