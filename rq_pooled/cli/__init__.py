"""The command `rq-pooled`."""
