"""``rq-pooled pause`` and ``resume``: have workers begin no job of a queue for a while."""

from __future__ import annotations

import click

from ..foreign import MAX_VALUE, printable
from ..monitoring.audit import Deed
from ..queue import pause as pauses
from .audit import noted
from .options import open_server, server_options
from .printing import say, say_json


@click.command(short_help="Have workers begin no job of a queue.")
@click.argument("queue")
@server_options
def pause(queue: str, url: str | None, as_json: bool) -> None:
    """Pause QUEUE: workers begin no further job of it until `rq-pooled resume`.

    It holds from the next claim on, for all rq_pooled workers together. Jobs that run go on, and jobs can be enqueued.
    A stock `rq worker` knows no pauses. `rq suspend` stops all queues, and stock workers, too.
    """
    _change(queue, True, url, as_json)


@click.command(short_help="End a pause.")
@click.argument("queue")
@server_options
def resume(queue: str, url: str | None, as_json: bool) -> None:
    """Resume QUEUE after `rq-pooled pause`: workers that wait for it begin at once."""
    _change(queue, False, url, as_json)


def _change(queue: str, pausing: bool, url: str | None, as_json: bool) -> None:
    connection = open_server(url)
    with noted(connection, Deed("pause" if pausing else "resume", queue)) as under_way:
        changed = (pauses.pause if pausing else pauses.resume)(connection, queue)
        if not changed:
            under_way.deeds.clear()
    if as_json:
        say_json({"queue": queue, "paused": pausing, "changed": changed})
        return
    word = "paused" if pausing else "resumed"
    name = printable(queue, MAX_VALUE)
    say(f"{name}: {word}" if changed else f"{name}: was {'paused already' if pausing else 'not paused'}")
