"""A small shop: orders become jobs, Redis has a page of its own at /rq/, and no request waits for Redis."""

from __future__ import annotations

import hmac
import os
from typing import Any

import jobs
from flask import Flask, abort, redirect, render_template_string, request, url_for

from rq_pooled.errors import RedisUnavailable
from rq_pooled.flask import RQPooled

rq = RQPooled(queue="orders")

_HOME = """<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>Shop</title>
<link rel="icon" href="data:,">
<style>body{font:1.1rem/1.6 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem;
color-scheme:light dark}
button{font:inherit;padding:.5rem 1rem}</style>
<h1>Shop</h1>
<form method="post" action="{{ url_for('order') }}"><button>Place an order</button></form>
<p></p>
<form method="post" action="{{ url_for('burst') }}"><button>A burst of 1 000 orders</button></form>
<p>Then look at <a href="{{ url_for('rq_pooled.page') }}">the page of rq_pooled</a>.</p></html>"""


def may_see_redis(action: str, queue: str | None) -> bool:
    """Say who may see the page and press its buttons: here who knows the token of the variable SHOP_TOKEN.

    An address would not do: behind a proxy all requests come from the proxy's.
    """
    given = request.cookies.get("shop_token") or request.headers.get("Authorization", "").removeprefix("Bearer ")
    return knows_token(given)


def knows_token(given: str) -> bool:
    """Compare with the token in a time that tells nothing about it; without a token nothing is right."""
    token = os.environ.get("SHOP_TOKEN", "")
    return bool(token) and hmac.compare_digest(given.encode(), token.encode())


def create_app() -> Flask:
    """Make the application; gunicorn and the worker's APP call this."""
    app = Flask(__name__)
    app.config["SHOP_NAME"] = "Corner Shop"
    rq.init_app(app)
    app.register_blueprint(rq.blueprint(authorize=may_see_redis), url_prefix="/rq")

    @app.get("/")
    def home() -> str:
        return render_template_string(_HOME)

    @app.get("/operator")
    def operator() -> Any:
        token = request.args.get("token", "")
        if not knows_token(token):
            abort(403)
        response = redirect(url_for("rq_pooled.page"))
        response.set_cookie("shop_token", token, httponly=True, samesite="Strict", secure=request.is_secure)
        return response

    @app.post("/orders")
    def order() -> Any:
        job = rq.queue.enqueue(jobs.confirm, request.form.get("number", 1, type=int))
        return {"job": job.id}, 202

    @app.post("/burst")
    def burst() -> Any:
        rq.queue.enqueue_many([jobs.order_for(rq.queue, number) for number in range(1000)])
        return redirect("/rq/#queues", 303)

    @app.errorhandler(RedisUnavailable)
    def redis_unavailable(error: RedisUnavailable) -> Any:
        return {"error": "orders cannot be taken now, please try again"}, 503, {"Retry-After": "2"}

    return app
