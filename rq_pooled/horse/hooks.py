"""What libraries that hold connections per process need around a job and before a fork, and the context of a Flask
app.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger("rq.worker")

#: The Flask application of APP, at most one, and the processes in which its inherited connections were forgotten.
_apps: list[Any] = []
_forgotten_in: set[int] = set()


def use_app(app: Any) -> None:
    """Run every job from now on inside ``app.app_context()``, a new one for each; before the first fork."""
    _apps[:] = [app]


@contextlib.contextmanager
def around_job() -> Iterator[None]:
    """Run a job inside: in the context of the Flask application, if there is one, and between Django's clean-ups.

    django-rq relies on a fresh process per job for that; reused horses have to do what Django does per request. At the
    end of the context Flask's teardown functions run, so no database session reaches the next job. An error in
    one is logged: what the job did stands.
    """
    _close_old_django_connections()
    try:
        with _app_context():
            yield
    finally:
        _close_old_django_connections()


def before_fork() -> None:
    """Close what a fork must not share: all of Django's database connections, where Django is loaded."""
    database = sys.modules.get("django.db")
    if database is not None:
        with contextlib.suppress(Exception):  # settings may not be configured; then nothing is open
            database.connections.close_all()


def _close_old_django_connections() -> None:
    database = sys.modules.get("django.db")
    if database is not None:
        with contextlib.suppress(Exception):
            database.close_old_connections()


@contextlib.contextmanager
def _app_context() -> Iterator[None]:
    if not _apps:
        yield
        return
    context = _apps[0].app_context()
    context.push()
    try:
        _forget_inherited_engines(_apps[0])
        yield
    finally:
        try:
            context.pop(None)  # RQ has recorded what the job raised; to Flask it is handled
        except Exception:
            logger.exception("a teardown function of the Flask application failed")


def _forget_inherited_engines(app: Any) -> None:
    """Keep this process, once, from using database connections that the factory opened: its siblings have them, too."""
    if os.getpid() in _forgotten_in:
        return
    _forgotten_in.add(os.getpid())
    with contextlib.suppress(Exception):  # no Flask-SQLAlchemy, or an old one
        for engine in app.extensions["sqlalchemy"].engines.values():
            engine.dispose(close=False)  # closing would end the siblings' conversations
