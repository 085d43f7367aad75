"""``rq-pooled scheduler``: runs rq-scheduler's jobs when they are due."""

from __future__ import annotations

from typing import Any

import click
from rq.logutils import setup_loghandlers

from ..durations import parse_duration
from ..errors import ConfigurationError, WorkerNameTaken
from ..log_lines import keep_lines
from .options import open_server


@click.command(short_help="Do the work of `rqscheduler`: enqueue what is due.")
@click.option("-u", "--url", metavar="TEXT", help="The server; else RQ_POOLED_URL, RQ_REDIS_URL or REDIS_URL.")
@click.option("-i", "--interval", default="60", show_default=True, metavar="TIME", help="Longest sleep: 30s, 1m.")
@click.option("-n", "--name", help="Its name, when it is to have one.")
@click.option("-b", "--burst", is_flag=True, help="Move what is due now, and end.")
@click.option("-v", "--verbose", is_flag=True, help="Show more output.")
@click.option("-q", "--quiet", is_flag=True, help="Show less output.")
def scheduler(url: str | None, interval: str, name: str | None, burst: bool, verbose: bool, quiet: bool) -> None:
    """Move jobs that rq-scheduler or rq_pooled.Scheduler has scheduled to their queues when they are due.

    Takes the place of `rqscheduler`; both may run at once, and any number of them: one at a time does the work. Wakes
    up when the next job is due, and at the latest after --interval. A worker with --with-scheduler does this work, too.
    """
    if verbose and quiet:
        raise click.UsageError("--verbose and --quiet exclude each other: use one.")
    seconds = parse_duration(interval, "--interval")
    if seconds < 1:
        raise ConfigurationError(f"--interval is {interval}: it must be at least 1 second")
    # It is imported here, since few commands need rq-scheduler.
    from ..scheduler.scheduler import Scheduler

    setup_loghandlers("DEBUG" if verbose else "WARNING" if quiet else "INFO", name="rq_pooled.scheduler")
    keep_lines()
    options: dict[str, Any] = {"interval": seconds, "connection": open_server(url), "name": name}
    one = Scheduler(**options)
    try:
        one.run(burst=burst)
    except ValueError as error:
        if "active scheduler" not in str(error):
            raise
        raise WorkerNameTaken(f"{error}; choose another --name, or wait {seconds + 10:g} s") from None
