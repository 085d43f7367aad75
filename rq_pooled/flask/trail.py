"""The page's part of the trail: what a button or a program did is written down, and shown on a page of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import request
from redis import Redis
from redis.exceptions import RedisError

from ..monitoring.audit import Actor, Deed, record, trail
from ..monitoring.processes import server_time
from ..monitoring.words import moment
from .rights import Rights
from .views import Views, page_of

#: Entries on the page.
SHOWN = 100


def add_trail(views: Views) -> None:
    """Add the page."""

    @views.get("/trail")
    def trail_page(redis: Redis) -> Any:
        now = server_time(redis)
        entries = trail(redis, SHOWN)
        rows = [{**one, "at": moment(one["time"], now)} for one in entries]
        return page_of("trail", redis, entries=rows)


def tracked(
    client: Redis, rights: Rights, action: str, queue: str, what: dict[str, str], run: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Run an action and write it down; what broke off is written down, too. Blocks for a round trip more.

    Args:
        what: parameters that say which jobs; those of the form itself are left out.
        run: returns a report with ``done``. ``trail_error`` is added where the trail could not be written.
    """
    words = ", ".join(f"{name}={value}" for name, value in what.items() if name not in ("queue", "policy", "confirm"))
    try:
        report = run()
    except RedisError:
        note(client, rights, Deed(action, queue, None, f"broken off; {words}"))
        raise
    return {**report, **note(client, rights, Deed(action, queue, report["done"], words))}


def note(client: Redis, rights: Rights, *deeds: Deed) -> dict[str, str]:
    """Write down what this request did; return ``trail_error`` for its report if that could not be, else nothing."""
    error = record(client, Actor(rights.who(), request.remote_addr or "", "page"), *deeds)
    return {"trail_error": error} if error else {}
