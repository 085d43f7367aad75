"""What libraries that hold connections per process need around a job and before a fork."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def around_job() -> Iterator[None]:
    """Run a job inside: Django's stale database connections are closed before and after, where Django is loaded.

    django-rq relies on a fresh process per job for this; reused horses have to do what Django does per request.
    """
    _close_old_django_connections()
    try:
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
