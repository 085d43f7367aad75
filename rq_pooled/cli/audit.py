"""``rq-pooled audit``: who did what, on the page and by commands; and how commands write it down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
from redis import Redis

from ..monitoring.audit import KEPT, Deed, Noted, noting, sentence, this_user, trail, when
from .options import open_server, server_options
from .printing import say, say_json


@click.command(short_help="Show who did what, on the page and by commands.")
@click.option("--limit", type=click.IntRange(1, KEPT), default=50, show_default=True, help="Entries at most.")
@server_options
def audit(limit: int, url: str | None, as_json: bool) -> None:
    """Show who did what, on the page and by commands, the newest last.

    The server keeps about the last 10,000 entries. The logger rq_pooled.audit has them, too: who can write to Redis
    can change what stands there.
    """
    found = trail(open_server(url), limit)
    if as_json:
        say_json(found)
        return
    for entry in reversed(found):
        say(f"{when(entry)}  {sentence(entry)}")
    if not found:
        say("nothing was done yet")


@contextmanager
def noted(connection: Redis, *deeds: Deed) -> Iterator[Noted]:
    """Write down what this command does, see ``noting``, and say so where that cannot be done."""
    under_way: Noted | None = None
    try:
        with noting(connection, this_user(), *deeds) as under_way:
            yield under_way
    finally:
        if under_way is not None and under_way.error and not under_way.failed:
            say(f"rq-pooled: what was done is done, but {under_way.error}", err=True)
