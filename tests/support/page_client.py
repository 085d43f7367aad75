"""A client of the page in an application of its own."""

from __future__ import annotations

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
