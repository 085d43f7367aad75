"""The endpoints of ``RQPooled.blueprint``: who may see what, and what is answered; flask/page.py makes the page itself.

A GET changes nothing. A POST needs the word "write" from the application, and must come from a page of this site.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

from flask import Blueprint, Response, abort, current_app, jsonify, redirect, render_template, request, url_for
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..config.secrets import scrub
from ..config.settings import Settings
from ..deadline import within
from ..errors import ConfigurationError, RQPooledError, SweepUnderWay, UnknownQueue
from ..failed.listing import failed_jobs
from ..foreign import plain, printable
from ..monitoring.health import health_word, pool_stats
from . import actions
from .notices import tell, told
from .overview import overview, queue_states
from .page import present

#: Seconds within which each request is answered, whatever the server does; health promises 2, with what Flask takes.
HEALTH_DEADLINE, DEADLINE = 1.9, 4.0
#: Bytes of a POST that are read, and what a form is sent as.
_MAX_BODY = 64 * 1024
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action "
        "'self'; "
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
            why = (
                "not allowed" if authorize else "RQPooled.blueprint() was given no authorize, so this is closed to all"
            )
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
            try:
                report = health_word(HEALTH_DEADLINE, client.settings, client.redis)
            except ConfigurationError:  # everybody may ask: what is wrong stands on the page
                report = {"ok": False, "status": "misconfigured"}
        return jsonify(report), 200 if report["ok"] else 503

    @blueprint.get("/redis/pool-stats")
    def redis_pool_stats() -> Response:
        return jsonify(pool_stats())

    @blueprint.get("/queues/status")
    def queues_status() -> Response:
        with within(DEADLINE, "the deadline of a page"):
            return jsonify(queues=queue_states(client_of().redis))

    @blueprint.get("/queues/failed-jobs")
    def queues_failed_jobs() -> Response:
        asked = _asked("queue", "exception", "offset", "limit")
        offset, limit = _number(asked, "offset", 0), min(_number(asked, "limit", 50), 200)
        with within(DEADLINE, "the deadline of a page"):
            return jsonify(failed_jobs(asked.get("queue"), asked.get("exception"), offset, limit, client_of().redis))

    @blueprint.get("/metrics")
    def metrics() -> Response:
        try:
            from ..monitoring.metrics import CONTENT_TYPE
            from ..monitoring.metrics import metrics as text
        except ImportError:
            abort(501, "install prometheus_client: pip install 'rq_pooled[metrics]'")
        client = client_of()
        with within(DEADLINE, "the deadline of a page"):
            return Response(text(client.redis, client.settings), content_type=CONTENT_TYPE)

    @blueprint.post("/queues/requeue")
    def queue_requeue() -> Any:
        given = _given("queue", "exception", "exactly")
        client = client_of().redis
        with within(DEADLINE, "the deadline of a page"):
            report = actions.requeue(client, _queue(given), given.get("exception"), exactly=_flag(given, "exactly"))
            return _done(client, "requeued", given["queue"], report)

    @blueprint.post("/queues/sweep")
    def queue_sweep() -> Any:
        given = _given("queue", "policy", "exception", "exactly", "older_than", "all")
        client, policy = client_of().redis, given.get("policy", "ghosts")
        with within(DEADLINE, "the deadline of a page"):
            report = actions.sweep(
                client,
                _queue(given),
                policy,
                given.get("exception"),
                given.get("older_than"),
                exactly=_flag(given, "exactly"),
                everything=_flag(given, "all"),
            )
            return _done(client, {"bury": "buried", "purge": "purged"}.get(policy, "swept"), given["queue"], report)

    @blueprint.get("/")
    def page() -> Any:
        client = client_of()
        try:
            with within(DEADLINE, "the deadline of a page"):
                message = told(client.redis, request.args.get("did", ""))
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
        try:
            from_there = urlsplit(origin)
        except ValueError:
            return False
        return (from_there.scheme, from_there.netloc) == (request.scheme, request.host)
    return "X-Requested-With" in request.headers


def _given(*known: str) -> dict[str, str]:
    """Return the parameters of a POST, from its form or its JSON.

    One that is not known is refused: left out, as a misspelt ``older-than``, it would mean more jobs than were meant.

    Raises:
        ConfigurationError: a parameter or the body cannot be used.
    """
    if request.args:
        raise ConfigurationError("parameters belong into the body, as a form or as JSON, not into the address")
    size = request.content_length
    if size is None and "Transfer-Encoding" in request.headers:
        raise ConfigurationError("the body has no length: send it with Content-Length")
    if size is not None and size > _MAX_BODY:
        raise ConfigurationError(f"the body has {size} bytes: at most {_MAX_BODY} are read")
    given: Any
    if request.is_json:
        try:
            given = json.loads(request.get_data(), object_pairs_hook=_once_each)
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict):
            raise ConfigurationError("the body is no JSON object")
    elif request.mimetype in _FORMS or not request.get_data():
        # Several values, and files, are as unknown as other names.
        given = {name: values[0] if len(values) == 1 else values for name, values in request.form.lists()}
        given.update(dict.fromkeys(request.files, None))
        for name in ("page", "csrf_token", str(current_app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token"))):
            given.pop(name, None)  # of the page's own forms
    else:
        raise ConfigurationError(f"the body is {request.mimetype or 'of no type'}: send a form, or application/json")
    for name, value in given.items():
        if name not in known:
            raise ConfigurationError(f"there is no parameter {printable(name, 50)!r}: use {', '.join(known)}")
        if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
            given[name] = str(int(value))
        elif not isinstance(value, str) or not value:
            raise ConfigurationError(
                f"{name} is {printable(value, 50)!r}: give one text that is not empty, or leave it out"
            )
        elif any("\ud800" <= character <= "\udfff" for character in value):
            raise ConfigurationError(f"{name} is {printable(value, 50)!r}: a half of a surrogate pair is no text")
    return dict(given)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs. A name that comes twice is as unusable as in a form."""
    given = dict(pairs)
    if len(given) < len(pairs):
        given.update(dict.fromkeys((name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1), None))
    return given


def _queue(given: dict[str, str]) -> str:
    if "queue" not in given:
        raise ConfigurationError("queue is missing: give the name of one")
    return given["queue"]


def _flag(given: dict[str, str], name: str) -> bool:
    value = given.get(name, "0")
    if value not in ("0", "1"):
        raise ConfigurationError(f"{name} is {printable(value, 50)!r}: give 1, or leave it out")
    return value == "1"


def _asked(*known: str) -> dict[str, str]:
    """Return the parameters of a GET. Raises ConfigurationError: one is not known, or is given twice."""
    for name, values in request.args.lists():
        if name not in known or len(values) > 1:
            raise ConfigurationError(f"{printable(name, 50)!r} cannot be used, or only once: give {', '.join(known)}")
    return {name: value for name, value in request.args.items() if value}


def _number(given: dict[str, str], name: str, default: int) -> int:
    value = given.get(name, str(default))
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise ConfigurationError(f"{name} is {printable(value, 50)!r}: give a whole number from 0")
    return int(value)


def _done(client: Redis, did: str, queue: str, report: dict[str, Any]) -> Any:
    """Answer a POST: the page's buttons with the page, everybody else with the report."""
    if "page" not in request.form:
        return jsonify(plain(report))
    more = report["unfinished"] or report["done"] >= actions.MOST
    return redirect(url_for(".page", did=tell(client, did, queue, report["done"], more)), 303)
