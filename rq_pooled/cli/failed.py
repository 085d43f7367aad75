"""``rq-pooled failed``: lists failed jobs, or prints the history of one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import click
from redis import Redis
from redis.exceptions import ResponseError
from rq.exceptions import NoSuchJobError

from ..durations import show_duration
from ..errors import TRY_AGAIN, ConfigurationError
from ..failed.groups import failure_groups
from ..failed.history import history
from ..failed.selection import Selection
from ..failed.sweeper import Sweeper
from ..failed.tracebacks import exception_of
from ..foreign import MAX_VALUE, is_wrong_type, printable, whole_number
from ..monitoring.processes import server_time
from .options import dead_option, open_server, selection_options, server_options
from .printing import say, say_blocked, say_json, saying_cuts
from .tables import table

_TIMES = ("first", "last")


@click.command(short_help="List failed jobs, or print the history of one.")
@click.argument("job", required=False)
@selection_options
@dead_option
@click.option("--groups", is_flag=True, help="Count the newest 1000 by exception and function: what fails most?")
@server_options
def failed(
    job: str | None, queues: tuple[str, ...], dead: bool, groups: bool, url: str | None, as_json: bool, **filters: Any
) -> None:
    """Print the history of JOB, try by try; without JOB, list failed jobs (100 per queue, or --limit).

    \b
      rq-pooled failed --groups                                 what fails most, and since when
      rq-pooled failed --exception ConnectionError              which jobs
      rq-pooled failed 6d1fb8a0-5d0f-4e21-8c8b-5f6a2f5d7a11     why: its tries, with tracebacks
      rq-pooled requeue --exception ConnectionError             again, just those
    """
    connection = open_server(url)
    if job is not None:
        _show(connection, job, as_json)
        return
    if groups:
        if any(filters.values()):
            raise click.UsageError("--groups takes --queue and --dead, and no other filter")
        _count(connection, queues, dead, as_json)
        return
    filters["limit"] = filters["limit"] or 100
    sweeper = Sweeper(list(queues) or None, connection, (), dead=dead)
    rows = []
    clock = time.time()
    blocked: dict[str, list[str]] = {}
    for queue in sweeper.filled():
        try:
            for one in sweeper.jobs(queue, Selection(**filters), with_data=True):
                rows.append(
                    {
                        "id": one.id,
                        "queue": queue,
                        "function": one.function,
                        "exception": one.exception,
                        "message": exception_of(one.traceback)[1],
                        "seconds_ago": None if one.failed_at is None else round(clock - one.failed_at),
                    }
                )
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            blocked.setdefault(str(error), []).append(queue)
    if as_json:
        say_json(rows)
    elif not rows:
        say("no job matches")
    if rows and not as_json:
        lines: list[list[object]] = [["JOB", "QUEUE", "FUNCTION", "FAILED", "MESSAGE"]]
        for row in rows:
            ago = "?" if row["seconds_ago"] is None else show_duration(max(0.0, float(row["seconds_ago"])))
            said = row["message"] or row["exception"] or "-"
            lines.append([row["id"], row["queue"], row["function"] or "-", f"{ago} ago", said])
        say(*table(lines, left=5))
        listed = Counter(row["queue"] for row in rows)
        full = ", ".join(str(queue) for queue, number in listed.items() if number >= filters["limit"])
        if full:
            say(f"only the oldest {filters['limit']} of {full}: see --limit, or --groups for all at a glance", err=True)
    if blocked:
        say_blocked(blocked, "not read")
        click.get_current_context().exit(TRY_AGAIN)


def _count(connection: Redis, queues: Sequence[str], dead: bool, as_json: bool) -> None:
    """Print the groups of failed jobs that the page shows, the largest first."""
    named = Sweeper(list(queues), connection, (), dead=dead).queues() if queues else [None]
    with saying_cuts():
        found = [failure_groups(connection, queue, dead) for queue in named]
    rows = sorted((group for one in found for group in one["groups"]), key=lambda group: -group["count"])
    if as_json:
        say_json(rows)
        return
    clock = server_time(connection)
    lines: list[list[object]] = [["EXCEPTION", "FUNCTION", "QUEUE", "JOBS", "FIRST", "LAST"]]
    for row in rows:
        times = [None if row[name] is None else show_duration(round(max(0.0, clock - row[name]))) for name in _TIMES]
        names = [row["exception"] or "(process ended)", row["function"] or "-", row["queue"], row["count"]]
        lines.append([*names, *(f"{time} ago" if time else "?" for time in times)])
    say(*table(lines, left=3) if rows else ["no job matches"])
    total, looked_at = (sum(one[name] for one in found) for name in ("total", "looked_at"))
    if looked_at < total:
        say(f"of the newest {looked_at} of {total}", err=True)
    blocked = [queue for one in found for queue in one["unreadable"]]
    if blocked:
        say_blocked({"its registry is a key of another type": blocked}, "not read")
        click.get_current_context().exit(TRY_AGAIN)


def _show(connection: Redis, job_id: str, as_json: bool) -> None:
    try:
        past = history(connection, job_id)
    except NoSuchJobError as error:
        raise ConfigurationError(str(error)) from None
    except ResponseError as error:
        if not is_wrong_type(error):
            raise
        raise ConfigurationError(f"the job {printable(job_id, MAX_VALUE)} cannot be read: {error}") from None
    if as_json:
        say_json(past)
        return
    left = whole_number(past["retries_left"])
    left_words = f", {left} retr{'y' if left == 1 else 'ies'} left" if left else ""
    head = [printable(word, MAX_VALUE) for word in (job_id, past["origin"], past["description"] or "")]
    say("  ".join(head), f"{past['status']}{left_words}")
    if not past["tries"]:
        say("no try is recorded")
    for number, one in enumerate(past["tries"], 1):
        took = "" if one["seconds"] is None else f" after {one['seconds']:g} s"
        then = f"; next try {one['next_try']}" if one["next_try"] else ""
        where = f" on {one['worker']}" if one["worker"] else ""
        say(f"{number:>3}. {one['at']}  {one['result']}{took}{where}: {one['error'] or '-'}{then}")
        if one["result"] != "successful":
            say(*("     " + line for line in one["traceback"].rstrip().splitlines()))
