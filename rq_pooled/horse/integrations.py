"""What Flask and Django need around a job: an application context, and no connection that a fork would share."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import reduce
from typing import Any

from ..config.user_code import user_code
from ..errors import ConfigurationError

logger = logging.getLogger("rq.worker")

#: The Flask application of APP, at most one, and the processes in which its inherited connections were forgotten.
_apps: list[Any] = []
_forgotten_in: set[int] = set()


def load_app(target: str) -> Any:
    """Import ``module:app`` or ``module:factory`` and return the application; a factory is called without arguments.

    Raises:
        ConfigurationError: it cannot be imported, the factory fails, or what came of it is no Flask application.
    """
    module, _, path = target.partition(":")
    with user_code(f"APP is {target!r}, which cannot be imported"):
        found = reduce(getattr, path.removesuffix("()").split("."), importlib.import_module(module))
    if not hasattr(found, "app_context") and callable(found):
        with user_code(f"APP is {target!r}, which failed"):
            found = found()
    if not hasattr(found, "app_context"):
        raise ConfigurationError(
            f"APP is {target!r}, which is a {type(found).__name__} and no Flask application or factory: name one"
        )
    return found


def use_app(app: Any) -> None:
    """Run every job from now on inside ``app.app_context()``, a new one for each; before the first fork."""
    _apps[:] = [app]


def around_job() -> AbstractContextManager[None]:
    """Run a job inside: in the context of the Flask application, if there is one, and between Django's clean-ups.

    django-rq relies on a fresh process per job for that; reused horses have to do what Django does per request. At the
    end of the context Flask's teardown functions run, so no database session reaches the next job. An error in
    one is logged: what the job did stands.
    """
    return _around_job() if _apps else _BETWEEN_CLEAN_UPS


class _BetweenCleanUps:
    """Django's clean-ups alone; a generator would take three times as long."""

    def __enter__(self) -> None:
        _close_old_django_connections()

    def __exit__(self, *_exc_info: object) -> None:
        _close_old_django_connections()


_BETWEEN_CLEAN_UPS = _BetweenCleanUps()


@contextlib.contextmanager
def _around_job() -> Iterator[None]:
    with _BETWEEN_CLEAN_UPS, _app_context():
        yield


def before_fork() -> None:
    """Close what a fork must not share: all of Django's database connections, where Django is loaded."""
    if database := sys.modules.get("django.db"):
        # Without configured settings it raises, and nothing is open.
        with contextlib.suppress(Exception):
            database.connections.close_all()


def _close_old_django_connections() -> None:
    if database := sys.modules.get("django.db"):
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
            # RQ has recorded what the job raised; to Flask it is handled.
            context.pop(None)
        except Exception:
            logger.exception("a teardown function of the Flask application failed")


def _forget_inherited_engines(app: Any) -> None:
    """Keep this process, once, from using database connections that the factory opened: its siblings have them, too."""
    if os.getpid() in _forgotten_in:
        return
    _forgotten_in.add(os.getpid())
    # There may be no Flask-SQLAlchemy, or an old one.
    with contextlib.suppress(Exception):
        for engine in app.extensions["sqlalchemy"].engines.values():
            # Closing would end the conversations of the other horses.
            engine.dispose(close=False)
