"""What the modules of the page share: each view is given the client, and is done within a deadline."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from flask import Blueprint, render_template, request
from redis import Redis

from ..config.settings import Settings
from ..deadline import within
from ..foreign import shown
from ..monitoring.audit import Actor, Deed, Noted, noting
from ..monitoring.processes import server_time
from ..monitoring.words import ago, count, due, moment, number, rate, span
from ..pool.registry import get_connection
from ..store.views import is_whole
from .notices import told
from .rights import Rights

#: Seconds within which a request is answered.
DEADLINE = 4.0

#: What a template calls to say something as people read it.
_WORDS = {"ago": ago, "count": count, "due": due, "moment": moment, "number": number, "rate": rate, "span": span}

View = Callable[[Redis], Any]


class Client:
    """What one application has: its settings, and its client, made when it is first needed.

    Not before: gunicorn may load the application, fork, and only then let gevent replace the locks.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._redis: Redis | None = None

    @property
    def redis(self) -> Redis:
        """The client, on the process's pool for its server."""
        if self._redis is None:
            # Twice at the same time does no harm: there is one per server.
            self._redis = get_connection(self.settings)
        return self._redis


class Views(NamedTuple):
    """A blueprint to which views are added, the current application's client, and who may do what."""

    blueprint: Blueprint
    client_of: Callable[[], Client]
    rights: Rights

    def get(self, path: str, method: str = "GET") -> Callable[[View], View]:
        """Add a view that answers GET, or another method, under the name of its function."""

        def add(view: View) -> View:
            def call() -> Any:
                with within(DEADLINE, "the deadline of a page"), self.rights.showing():
                    return view(self.client_of().redis)

            self.blueprint.add_url_rule(path, view.__name__, call, methods=[method])
            return view

        return add

    def post(self, path: str) -> Callable[[View], View]:
        """Add a view that answers POST, under the name of its function."""
        return self.get(path, "POST")

    def noted(self, redis: Redis, *deeds: Deed) -> AbstractContextManager[Noted]:
        """Write down what this request does, before and after, see ``noting``."""
        return noting(redis, Actor(self.rights.who(), request.remote_addr or "", "page"), *deeds)


def page_of(template: str, redis: Redis, raw: dict[str, Any] | None = None, **values: Any) -> str:
    """Return a page, with what a button that led here has done. Blocks for up to two round trips.

    Args:
        template, redis: its name, and the client.
        raw: what links and forms are to carry as it is.
        values: whose texts are made fit to be shown.
    """
    values.update(message=told(redis), now=server_time(redis), whole=is_whole())
    return render_template(f"rq_pooled/{template}.html", **_WORDS, **shown(values), **(raw or {}))
