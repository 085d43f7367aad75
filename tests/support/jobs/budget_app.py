"""A Flask application with a budget, for gunicorn: each request enqueues a job."""

from __future__ import annotations

from flask import Flask

import rq_pooled
from rq_pooled.errors import RedisUnavailable

app = Flask(__name__)
queue = rq_pooled.Queue("a")


@app.get("/")
def enqueue() -> tuple[str, int]:
    """Enqueue, or say why not."""
    try:
        return queue.enqueue("stream_jobs.nothing").id, 202
    except RedisUnavailable as error:
        return f"{type(error).__name__}: {error}", 503
