"""``rq-pooled limit``: shows and changes the limits of queues."""

from __future__ import annotations

from typing import Any

import click

from ..monitoring.audit import Deed
from ..queue.limits import Limit, LimitInForce, clear_limit, limits_in_force, make_limit, set_limit
from ..store.keys import QUEUES, queue_key
from ..wire import raw
from .audit import noted
from .options import open_server, server_options
from .printing import say, say_json


@click.command(short_help="Show, set or clear the limits of queues.")
@click.argument("queue", required=False)
@click.option("--rate", metavar="NUMBER/TIME", help="At most so many starts within any such time: 10/5s, 1000/1h.")
@click.option("--max-running", type=int, metavar="JOBS", help="At most so many jobs of the queue at once.")
@click.option("--clear", is_flag=True, help="Remove the limit; what the code declares holds again.")
@server_options
def limit(
    queue: str | None, rate: str | None, max_running: int | None, clear: bool, url: str | None, as_json: bool
) -> None:
    """Show the limits of all queues, or show, set or clear that of QUEUE.

    A limit holds for all rq_pooled workers together, from the next job on; no restart. What is set here goes before
    what code declares (`Queue(..., limit="10/5s")`) until it is cleared. A stock `rq worker` knows no limits.
    """
    wanted = make_limit(rate, max_running) if rate is not None or max_running is not None else None
    if queue is None and (wanted or clear):
        raise click.UsageError("name the QUEUE whose limit is to be changed.")
    if wanted and clear:
        raise click.UsageError("--clear excludes --rate and --max-running.")
    connection = open_server(url)
    cleared = False
    if queue is not None and wanted is not None:
        with noted(connection, Deed("limit", queue, None, str(wanted))):
            set_limit(connection, queue, wanted)
    elif queue is not None and clear:
        cleared = queue in limits_in_force(connection)
        with noted(connection, Deed("limit", queue, None, "cleared")):
            clear_limit(connection, queue)
    unreadable: dict[str, str] = {}
    found = limits_in_force(connection, unreadable)
    for name, text in unreadable.items():
        if queue in (None, name):
            say(f"rq-pooled: {name}: {text!r} is no limit and counts as none; --clear removes it", err=True)
    if queue is not None:
        found = {name: one for name, one in found.items() if name == queue}
    if as_json:
        say_json({name: _plain(one) for name, one in found.items()})
    elif found:
        for name, one in found.items():
            say(f"{name}: {one.limit} ({'set by an operator' if one.by_operator else 'declared by code'})")
    elif cleared:
        say(f"{queue}: no limit any more")
    else:
        key: Any = raw(queue_key(queue or ""))
        known = queue is None or connection.sismember(QUEUES, key)
        unknown = "" if known else " (and no queue of this name has ever been used)"
        say("no queue has a limit" if queue is None else f"{queue}: no limit{unknown}")


def _plain(one: LimitInForce) -> dict[str, Any]:
    value: Limit = one.limit
    return {
        "starts": value.starts or None,
        "period_seconds": value.period if value.starts else None,
        "max_running": value.max_running or None,
        "set_by": "operator" if one.by_operator else "code",
    }
