"""The endpoints of ``RQPooled.blueprint``: who may see what, and what is answered; page.py makes the page itself.

A GET changes nothing. A POST needs the word "write" from the application, and must come from a page of this site.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

from flask import Blueprint, Response, abort, jsonify, redirect, render_template, request, url_for
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from . import actions
from .config import Settings, scrub
from .deadline import within
from .errors import ConfigurationError, RQPooledError, SweepUnderWay, UnknownQueue
from .failures import failed_jobs
from .health import health, pool_stats
from .overview import overview, queue_states
from .page import present

#: Seconds within which each request is answered, whatever the server does; health promises 2, with what Flask takes.
HEALTH_DEADLINE, DEADLINE = 1.9, 4.0
#: What ``/health/redis``, which is open to everybody, does not tell.
_PRIVATE = ("address", "version", "connected", "maxclients")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

#: Returns nothing true (403), something true (may look), or the word ``"write"`` (may requeue and sweep).
Authorize = Callable[[], Any]


class Client(Protocol):
    """What an application has: its settings, and a client of its server."""

    settings: Settings

    @property
    def redis(self) -> Redis:
        """The client."""


def make_blueprint(client_of: Callable[[], Client], authorize: Authorize | None, name: str) -> Blueprint:
    """Return the blueprint.

    Args:
        client_of: returns the current application's client.
        authorize: asked for each request but ``/health/redis``.
        name: of the blueprint.
    """
    blueprint = Blueprint(
        name, __name__, template_folder="templates", static_folder="static", static_url_path="/rq-pooled-static"
    )

    def permission() -> str:
        """Return ``"write"``, ``"read"`` or ``""``."""
        said = authorize() if authorize is not None else None
        return "write" if said == "write" else "read" if said else ""

    @blueprint.before_request
    def check() -> None:
        if _view() == "health_redis":
            return
        allowed = permission()
        if not allowed:
            why = "not allowed" if authorize else "RQPooled.blueprint() was given no authorize, so nobody may see this"
            abort(403, why)
        if request.method not in ("GET", "HEAD", "OPTIONS"):
            if allowed != "write":
                abort(403, 'not allowed: authorize has to return "write" for this')
            if not _is_from_this_site():
                abort(403, "not from a page of this site (programs send the header X-Requested-With)")

    @blueprint.after_request
    def add_headers(response: Response) -> Response:
        for key, value in _HEADERS.items():
            if not (key == "Cache-Control" and _view() == "static"):
                response.headers[key] = value
        return response

    @blueprint.errorhandler(RQPooledError)
    @blueprint.errorhandler(RedisError)
    def refuse(error: Exception) -> tuple[Any, int]:
        code = 503
        if isinstance(error, ConfigurationError):
            code = 400
        elif isinstance(error, UnknownQueue):
            code = 404
        elif isinstance(error, SweepUnderWay):
            code = 409
        reason = scrub(str(error)) or type(error).__name__
        if "page" in request.form:
            return render_template("rq_pooled/problem.html", title="That did not work", reason=reason), code
        return jsonify(error=reason), code

    @blueprint.get("/health/redis")
    def health_redis() -> tuple[Response, int]:
        client = client_of()
        with within(HEALTH_DEADLINE, "the deadline of /health/redis"):
            report = health(HEALTH_DEADLINE, client.settings, client.redis)
        return jsonify({key: value for key, value in report.items() if key not in _PRIVATE}), 200 if report["ok"] else 503

    @blueprint.get("/redis/pool-stats")
    def redis_pool_stats() -> Response:
        return jsonify(pool_stats())

    @blueprint.get("/queues/status")
    def queues_status() -> Response:
        with within(DEADLINE, "the deadline of a page"):
            return jsonify(queues=queue_states(client_of().redis))

    @blueprint.get("/queues/failed-jobs")
    def queues_failed_jobs() -> Response:
        queue, exception = request.args.get("queue") or None, request.args.get("exception") or None
        with within(DEADLINE, "the deadline of a page"):
            return jsonify(
                failed_jobs(queue, exception, _number("offset", 0), min(_number("limit", 50), 200), client_of().redis)
            )

    @blueprint.get("/metrics")
    def metrics() -> Response:
        try:
            from .metrics import CONTENT_TYPE
            from .metrics import metrics as text
        except ImportError:
            abort(501, "install prometheus_client: pip install 'rq_pooled[metrics]'")
        client = client_of()
        with within(DEADLINE, "the deadline of a page"):
            return Response(text(client.redis, client.settings), content_type=CONTENT_TYPE)

    @blueprint.post("/queues/<path:queue>/requeue")
    def queue_requeue(queue: str) -> Any:
        given = _given()
        with within(DEADLINE, "the deadline of a page"):
            report = actions.requeue(
                client_of().redis, queue, given.get("exception"), exactly="exactly" in given
            )
        return _done("requeued", queue, report)

    @blueprint.post("/queues/<path:queue>/sweep")
    def queue_sweep(queue: str) -> Any:
        given = _given()
        with within(DEADLINE, "the deadline of a page"):
            report = actions.sweep(
                client_of().redis,
                queue,
                given.get("policy") or "ghosts",
                given.get("exception"),
                given.get("older_than"),
                "exactly" in given,
            )
        return _done({"bury": "buried", "purge": "purged"}.get(given.get("policy", ""), "swept"), queue, report)

    @blueprint.get("/")
    def page() -> Any:
        client = client_of()
        message = {key: request.args.get(key, "") for key in ("did", "queue", "count", "more")}
        if not message["count"].isdecimal():  # an address that somebody made up: it is to say nothing
            message["did"] = ""
        try:
            with within(DEADLINE, "the deadline of a page"):
                found = present(overview(client.redis, client.settings))
        except RedisError as error:
            reason = scrub(str(error)) or type(error).__name__
            silent = isinstance(error, (RedisConnectionError, RedisTimeoutError))
            title = "Redis does not answer" if silent else "Redis refuses"  # an ACL, a script that runs for too long
            return render_template("rq_pooled/problem.html", title=title, reason=reason), 503
        return render_template("rq_pooled/page.html", may_write=permission() == "write", message=message, **found)

    return blueprint


def _view() -> str:
    return (request.endpoint or "").rpartition(".")[2]


def _is_from_this_site() -> bool:
    """Tell whether a page of this site sent the request, or a program that is no browser.

    Every browser that people use says where a form comes from: in Sec-Fetch-Site, older ones in Origin. A header of
    one's own cannot be sent by another site's form.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        return site == "same-origin"
    if origin is not None:
        return urlsplit(origin).netloc == request.host
    return "X-Requested-With" in request.headers


def _given() -> dict[str, str]:
    """Return the parameters of a POST, from its form or its JSON; texts only."""
    given: Any = request.get_json(silent=True) if request.is_json else request.form
    if not hasattr(given, "items"):
        raise ConfigurationError("the body is no JSON object")
    return {str(key): str(value) for key, value in given.items() if value is not None}


def _number(name: str, default: int) -> int:
    given = request.args.get(name) or str(default)
    if not given.isascii() or not given.isdigit() or len(given) > 9:
        raise ConfigurationError(f"{name} is {given[:50]!r}: give a whole number from 0")
    return int(given)


def _done(did: str, queue: str, report: dict[str, Any]) -> Any:
    """Answer a POST: the page's buttons with the page, everybody else with the report."""
    if "page" not in request.form:
        return jsonify(report)
    more = "1" if report["unfinished"] or report["done"] >= actions.MOST else None
    return redirect(url_for(".page", did=did, queue=queue, count=report["done"], more=more), 303)
