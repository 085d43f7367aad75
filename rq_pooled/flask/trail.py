"""The page's part of the trail: what a button or a program did is written down, and shown on a page of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from flask import Blueprint, render_template, request
from redis import Redis

from ..deadline import within
from ..foreign import shown
from ..monitoring.audit import Actor, Deed, Noted, noting, trail
from ..monitoring.processes import server_time
from .rights import Rights
from .words import moment

#: Entries on the page, and seconds within which it is made.
SHOWN, DEADLINE = 100, 4.0


def add_trail(blueprint: Blueprint, client: Callable[[], Redis]) -> None:
    """Add the page to the blueprint."""

    @blueprint.get("/trail")
    def trail_page() -> Any:
        with within(DEADLINE, "the deadline of a page"):
            now = server_time(client())
            entries = trail(client(), SHOWN)
        rows = [{**one, "at": moment(one["time"], now)} for one in entries]
        return render_template("rq_pooled/trail.html", entries=shown(rows), most=SHOWN)


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
