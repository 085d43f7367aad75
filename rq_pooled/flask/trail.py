"""The page's part of the trail: what a button or a program did is written down, and shown on a page of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from flask import request
from redis import Redis

from ..monitoring.audit import Actor, Deed, Noted, noting, trail
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
    """Run an action on jobs, and write it down, see ``noted``.

    Args:
        what: parameters that say which jobs; those of the form itself are left out.
        run: returns a report with ``done``. ``trail_error`` is added where the trail could not be written.
    """
    words = ", ".join(f"{name}={value}" for name, value in what.items() if name not in ("queue", "policy", "confirm"))
    deed = Deed(action, queue, None, words)
    with noted(client, rights, deed) as under_way:
        report = run()
        under_way.deeds = [deed._replace(jobs=report["done"])]
    return {**report, **under_way.report}


def noted(client: Redis, rights: Rights, *deeds: Deed) -> AbstractContextManager[Noted]:
    """Write down what this request does, before and after, see ``noting``."""
    return noting(client, Actor(rights.who(), request.remote_addr or "", "page"), *deeds)
