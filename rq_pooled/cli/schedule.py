"""``rq-pooled schedule``: what is to come, and how one of it is cancelled."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import click

from ..foreign import LAST_TIME, MAX_VALUE, printable
from ..monitoring.schedules import cancel as cancel_job
from ..monitoring.schedules import deed_of_cancel, scheduled_in, schedules
from .audit import noted
from .options import open_server, server_options
from .printing import say, say_json, saying_cuts
from .tables import table


@click.group(short_help="List what is to come, or cancel one of it.")
def schedule() -> None:
    """List what is to come, or cancel one of it."""


@schedule.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Entries at most.")
@server_options
def listed(limit: int, url: str | None, as_json: bool) -> None:
    """List what is due first: scheduled jobs, retries and repeats of RQ, jobs of rq-scheduler, recurring sweeps, RQ's
    cron.
    """
    with saying_cuts():
        found = schedules(open_server(url), limit)
    if as_json:
        say_json(found)
        return
    rows: list[list[object]] = [["NEXT", "LAST", "KIND", "EVERY", "QUEUE", "WHAT", "ID"]]
    for one in found:
        words = [printable(one[name], MAX_VALUE) or "-" for name in ("kind", "every", "queue", "what", "id")]
        rows.append([_when(one["next"]), _when(one["last"]), *words])
    say(*(table(rows, left=7) if found else ["nothing is scheduled"]))


@schedule.command()
@click.argument("job")
@server_options
def cancel(job: str, url: str | None, as_json: bool) -> None:
    """Cancel JOB, whose id `rq-pooled schedule list` shows.

    A job of RQ is cancelled as RQ does it. One of rq-scheduler leaves its schedule. What runs already goes on. The
    schedule of `rq cron` is in its file.
    """
    connection = open_server(url)
    with noted(connection, deed_of_cancel(job, scheduled_in(connection, job) or "")) as under_way:
        queue = cancel_job(connection, job)
        under_way.deeds = [deed_of_cancel(job, queue, 1)]
    if as_json:
        say_json({"job": job, "queue": queue})
    else:
        say(f"{printable(job, MAX_VALUE)}: cancelled")


def _when(seconds: Any) -> str:
    if seconds is None:
        return "-"
    return f"{datetime.fromtimestamp(min(max(seconds, 0), LAST_TIME), tz=timezone.utc):%Y-%m-%d %H:%M:%S}Z"
