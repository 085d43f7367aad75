"""Enqueue from FastAPI, with health, statistics and metrics: nothing of rq_pooled needs Flask.

    uvicorn --app-dir examples fastapi_health:app

Redis is asked in FastAPI's threads (``def``, not ``async def``), so the event loop never waits for it. Everything but
``/health/redis`` wants the token of the variable STATUS_TOKEN: ``Authorization: Bearer <token>``.
"""

from __future__ import annotations

import hmac
import os
from typing import Any

from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from rq_pooled import Queue, health
from rq_pooled.errors import RedisUnavailable
from rq_pooled.metrics import CONTENT_TYPE, metrics

app = FastAPI(title="rq_pooled")


def operator(authorization: str = Header("")) -> None:
    """Let only those pass who know the token."""
    token = os.environ.get("STATUS_TOKEN")
    given = authorization.removeprefix("Bearer ")
    if not token or not hmac.compare_digest(given.encode(), token.encode()):
        raise HTTPException(403, "not allowed")


@app.exception_handler(RedisUnavailable)
def redis_unavailable(request: Request, error: RedisUnavailable) -> JSONResponse:
    """Answer at once, instead of keeping the client waiting for Redis."""
    return JSONResponse({"detail": "try again in a moment"}, 503, {"Retry-After": "2"})


@app.post("/factorials/{number}", status_code=202)
def enqueue(number: int) -> dict[str, str]:
    """Enqueue a job; ends within ENQUEUE_DEADLINE."""
    return {"job": Queue("default").enqueue("math.factorial", number).id}


@app.get("/health/redis")
def health_redis() -> JSONResponse:
    """Tell everybody in a word whether Redis can be used, with 200 or 503."""
    report = health.health_word(timeout=2.0)
    return JSONResponse(report, 200 if report["ok"] else 503)


@app.get("/redis/pool-stats", dependencies=[Depends(operator)])
def pool_stats() -> dict[str, Any]:
    """Return the state of this process's pool."""
    return health.pool_stats()


@app.get("/queues/status", dependencies=[Depends(operator)])
def queues_status() -> list[dict[str, Any]]:
    """Return the state of each queue."""
    return health.queues()


@app.get("/queues/failed-jobs", dependencies=[Depends(operator)])
def failed_jobs(queue: str | None = None, exception: str | None = None, offset: int = 0) -> dict[str, Any]:
    """Return failed jobs, the latest first."""
    return health.failed_jobs(queue, exception, offset)


@app.get("/metrics", dependencies=[Depends(operator)])
def prometheus() -> Response:
    """Return everything for Prometheus."""
    return Response(metrics(), media_type=CONTENT_TYPE)
