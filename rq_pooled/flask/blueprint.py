"""The endpoints of ``RQPooled.blueprint``: who may see what, and what is answered; page.py makes the page itself.

A GET changes nothing. A POST needs its right, see rights.py, and must come from a page of this site.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, abort, jsonify, render_template, request
from flask.blueprints import BlueprintSetupState
from redis import Redis
from redis.exceptions import RedisError
from rq.exceptions import NoSuchJobError

from ..config.secrets import message_of
from ..connection.away import LOST, is_forbidden
from ..deadline import within
from ..errors import ConfigurationError, RQPooledError, SweepUnderWay, UnknownQueue
from ..failed.listing import failed_jobs
from ..foreign import MAX_VALUE, bounded, printable, shown
from ..monitoring.audit import trail
from ..monitoring.health import health_word
from ..monitoring.overview import overview, queue_states
from ..monitoring.processes import pool_stats
from ..store.views import is_whole
from .jobs import add_job_pages
from .page import present
from .parameters import asked_for, list_address, number, page_of_form
from .queues import add_queues
from .rights import BURY, PAUSE, REQUEUE, VIEW, Authorize, Rights, Who
from .schedule import add_schedule
from .views import Client, Views, page_of
from .workers import add_workers

#: Seconds within which health is answered. It promises 2, of which Flask takes a part.
HEALTH_DEADLINE = 1.9
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

#: What an error of ours is answered with.
_CODES = {ConfigurationError: 400, NoSuchJobError: 404, UnknownQueue: 404, SweepUnderWay: 409}
#: Entries on the page of the trail.
_TRAIL = 100
#: Views that answer with a page for people, an error too.
_PAGES = ("page", "failed", "job", "queue", "failed_confirm", "trail_page", "schedule", "workers_page", "nowhere")


def make_blueprint(
    client_of: Callable[[], Client], authorize: Authorize | None, name: str, who: Who | None = None
) -> Blueprint:
    """Return the blueprint.

    Args:
        client_of: returns the current application's client.
        authorize, who: asked for each request but ``/health/redis``, see ``Rights``.
        name: of the blueprint.
    """
    rights = Rights(authorize, who)
    blueprint = Blueprint(
        name, __name__, template_folder="templates", static_folder="static", static_url_path="/rq-pooled-static"
    )

    @blueprint.before_request
    def check() -> None:
        if _view() == "health_redis":
            return
        changes = request.method not in ("GET", "HEAD", "OPTIONS")
        rights.enter(_view(), changes)
        if changes and not _is_from_this_site():
            abort(403, "not from a page of this site (programs send the header X-Requested-With)")

    @blueprint.after_request
    def add_headers(response: Response) -> Response:
        for key, value in _HEADERS.items():
            if not (key == "Cache-Control" and _view() == "static"):
                response.headers[key] = value
        return response

    @blueprint.errorhandler(NoSuchJobError)
    @blueprint.errorhandler(RQPooledError)
    @blueprint.errorhandler(RedisError)
    def refuse(error: Exception) -> tuple[Any, int]:
        other = 403 if is_forbidden(error) else 503
        code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), other)
        reason, title = _reason(error, client_of), "That did not work"
        if isinstance(error, RedisError):
            # An ACL forbids it, or a script runs for too long.
            title = "Redis does not answer" if isinstance(error, LOST) else "Redis refuses"
        if page_of_form() or _view() in _PAGES:
            told = {"title": title, "reason": shown(reason), "back": list_address()}
            return render_template("rq_pooled/problem.html", **told), code
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

    views = Views(blueprint, client_of, rights)

    @views.get("/queues/status")
    def queues_status(redis: Redis) -> Response:
        return jsonify(queues=bounded(queue_states(redis)), whole=is_whole())

    @views.get("/queues/failed-jobs")
    def queues_failed_jobs(redis: Redis) -> Response:
        asked = asked_for("queue", "exception", "offset", "limit")
        offset, limit = number(asked, "offset", 0), min(number(asked, "limit", 50), 200)
        if "queue" in asked:
            rights.require(VIEW, asked["queue"])
        found = failed_jobs(asked.get("queue"), asked.get("exception"), offset, limit, redis)
        return jsonify(**bounded(found), whole=is_whole())

    @views.get("/metrics")
    def metrics(redis: Redis) -> Response:
        try:
            from ..monitoring import metrics as exposed
        except ImportError:
            abort(501, "install prometheus_client: pip install 'rq_pooled[metrics]'")
        return Response(exposed.metrics(redis, client_of().settings), content_type=exposed.CONTENT_TYPE)

    @views.get("/")
    def page(redis: Redis) -> Any:
        found = present(overview(redis, client_of().settings), sort := request.args.get("sort", ""))
        asked = [(PAUSE, queue["name"]) for queue in found["queues"]]
        asked += [(action, group["queue"]) for group in found["failures"] for action in (REQUEUE, BURY)]
        return page_of("page", redis, {**found, "may": {one for one in asked if rights.may(*one)}, "sort": sort})

    @views.get("/trail")
    def trail_page(redis: Redis) -> Any:
        return page_of("trail", redis, entries=trail(redis, _TRAIL))

    def nowhere(path: str) -> Any:
        raise UnknownQueue(f"there is no page {printable(path, MAX_VALUE)}")

    @blueprint.record
    def add_nowhere(state: BlueprintSetupState) -> None:
        # Without a prefix, other addresses are the application's.
        if (state.url_prefix or "/") != "/" or state.options.get("alone"):
            state.add_url_rule("/<path:path>", "nowhere", nowhere)

    for add in (add_queues, add_schedule, add_workers, add_job_pages):
        add(views)
    return blueprint


def _reason(error: Exception, client_of: Callable[[], Client]) -> str:
    """Return what went wrong; where the server's access control refuses it, the user that may, too."""
    if not is_forbidden(error):
        return message_of(error)
    user = client_of().redis.connection_pool.connection_kwargs.get("username") or "default"
    return (
        f"the server refuses this to the user {message_of(user)}: a page that acts logs in as the user page, one "
        f"that only shows as page-view (rq-pooled acl prints their rights): {message_of(error)}"
    )


def _view() -> str:
    return (request.endpoint or "").rpartition(".")[2]


def _is_from_this_site() -> bool:
    """Tell whether a page of this site sent the request, or a program that is no browser.

    Browsers say where a form comes from in Sec-Fetch-Site, older ones in Origin. The form of another site cannot send
    a header that it names itself.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        return site == "same-origin"
    if origin is not None:
        return origin == f"{request.scheme}://{request.host}"
    return "X-Requested-With" in request.headers
