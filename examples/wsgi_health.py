"""Health, statistics and metrics of rq_pooled without a framework: a WSGI application for any server.

    python examples/wsgi_health.py            http://127.0.0.1:8001/health/redis
    gunicorn --chdir examples wsgi_health:application

Mount it in front of or beside an application of your own. Everything but ``/health/redis`` wants the token of the
variable STATUS_TOKEN: ``Authorization: Bearer <token>``.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import make_server

from redis.exceptions import RedisError

from rq_pooled import health
from rq_pooled.deadline import within
from rq_pooled.metrics import CONTENT_TYPE, metrics

SECONDS = 2.0


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer one request within about two seconds, whatever Redis does."""
    kind, status = "application/json", "200 OK"
    path = environ.get("PATH_INFO", "/")
    try:
        with within(SECONDS, "the deadline of this request"):
            if path == "/health/redis":
                report = health.health_word(SECONDS)
                status = "200 OK" if report["ok"] else "503 Service Unavailable"
                body = json.dumps(report)
            elif not _is_allowed(environ):
                status, body = "403 Forbidden", '{"error": "not allowed"}'
            elif path == "/redis/pool-stats":
                body = json.dumps(health.pool_stats())
            elif path == "/queues/status":
                body = json.dumps(health.queues())
            elif path == "/queues/failed-jobs":
                queue = parse_qs(environ.get("QUERY_STRING", "")).get("queue", [None])[0]
                body = json.dumps(health.failed_jobs(queue))
            elif path == "/metrics":
                kind, body = CONTENT_TYPE, metrics()
            else:
                status, body = "404 Not Found", '{"error": "no such page"}'
    except (RedisError, OSError):
        status, body = "503 Service Unavailable", '{"error": "Redis does not answer"}'
    start_response(status, [("Content-Type", kind), ("Cache-Control", "no-store")])
    return [body.encode()]


def _is_allowed(environ: dict[str, Any]) -> bool:
    token = os.environ.get("STATUS_TOKEN")
    given = environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer ")
    return bool(token) and hmac.compare_digest(given.encode(), str(token).encode())


if __name__ == "__main__":
    with make_server("127.0.0.1", int(os.environ.get("PORT", "8001")), application) as server:
        print(f"http://127.0.0.1:{server.server_port}/health/redis", flush=True)
        server.serve_forever()
