"""A client of the page in an application of its own."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import flask

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.flask import RQPooled


def client_of(server: EmbeddedServer, authorize: Any = lambda action, queue: True, **options: Any) -> Any:
    """Return a client whose requests come from a page of the application itself; ``options`` are the blueprint's."""
    app = flask.Flask("shop")
    app.config.update(RQ_POOLED_URL=server.url, TESTING=True)
    app.register_blueprint(RQPooled(app).blueprint(authorize=authorize, **options), url_prefix="/rq")
    client = app.test_client()
    client.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
    return client


class Forms(HTMLParser):
    """The forms of a page that are posted: where to, and the fields that a browser sends."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a form, or a field of the last one."""
        one = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.found.append((one.get("action", ""), {"": one.get("method", "get")}))
        elif "name" in one and self.found and one.get("type") != "checkbox":
            self.found[-1][1][one["name"]] = one.get("value", "")

    def posted(self) -> list[tuple[str, dict[str, str]]]:
        """Return those whose method is post, without that."""
        return [(action, fields) for action, fields in self.found if fields.pop("") == "post"]
