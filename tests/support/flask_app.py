"""A Flask application with the page."""

from __future__ import annotations

from typing import Any

import pytest

flask = pytest.importorskip("flask")


def make_app(url: str, authorize: Any = None, **config: Any) -> Any:
    """An application with the blueprint at /rq."""
    from rq_pooled.flask import RQPooled

    app = flask.Flask("shop")
    app.config.update(RQ_POOLED_URL=url, TESTING=True, **config)
    rq = RQPooled(app)
    app.register_blueprint(rq.blueprint(authorize=authorize), url_prefix="/rq")
    return app
