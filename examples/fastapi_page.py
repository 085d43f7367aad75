"""The page in FastAPI: mounted with a2wsgi, which runs it in threads, behind a token.

    pip install 'rq_pooled[flask]' a2wsgi fastapi uvicorn
    uvicorn --app-dir examples fastapi_page:app

Everything but ``/rq/health/redis`` wants the token of the variable STATUS_TOKEN: ``Authorization: Bearer <token>``.
"""

from __future__ import annotations

import hmac
import os

import flask
from a2wsgi import WSGIMiddleware
from fastapi import FastAPI

from rq_pooled.flask import page_app


def authorize(action: str, queue: str | None) -> bool:
    """Let those who know the token do everything; an application with sessions looks at its cookie here."""
    token = os.environ.get("STATUS_TOKEN")
    given = flask.request.headers.get("Authorization", "").removeprefix("Bearer ")
    return bool(token) and hmac.compare_digest(given.encode(), (token or "").encode())


app = FastAPI(title="shop")
app.mount("/rq", WSGIMiddleware(page_app(authorize)))  # type: ignore[arg-type]
