"""What the modules of the page share: each view is given the client, and is done within a deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from flask import Blueprint, render_template
from redis import Redis

from ..deadline import within
from ..foreign import shown
from .notices import told
from .rights import Rights

#: Seconds within which a request is answered.
DEADLINE = 4.0

View = Callable[[Redis], Any]


class Views(NamedTuple):
    """A blueprint to which views are added, the current application's client, and who may do what."""

    blueprint: Blueprint
    client: Callable[[], Redis]
    rights: Rights

    def get(self, path: str) -> Callable[[View], View]:
        """Add a view that answers GET, under the name of its function."""
        return self._add(path, "GET")

    def post(self, path: str) -> Callable[[View], View]:
        """Add a view that answers POST, under the name of its function."""
        return self._add(path, "POST")

    def _add(self, path: str, method: str) -> Callable[[View], View]:
        def add(view: View) -> View:
            def call() -> Any:
                with within(DEADLINE, "the deadline of a page"):
                    return view(self.client())

            self.blueprint.add_url_rule(path, view.__name__, call, methods=[method])
            return view

        return add


def page_of(template: str, redis: Redis, raw: dict[str, Any] | None = None, **values: Any) -> str:
    """Return a page, with what a button that led here has done. Blocks for a round trip in that case.

    Args:
        template, redis: its name, and the client.
        raw: what links and forms are to carry as it is.
        values: whose texts are made fit to be shown.
    """
    return render_template(f"rq_pooled/{template}.html", message=shown(told(redis)), **shown(values), **(raw or {}))
