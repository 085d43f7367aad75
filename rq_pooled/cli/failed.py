"""``rq-pooled failed``: lists failed jobs, or prints the history of one."""

from __future__ import annotations

import time
from typing import Any

import click
from redis import Redis
from redis.exceptions import ResponseError
from rq.exceptions import NoSuchJobError

from ..durations import show_duration
from ..errors import TRY_AGAIN, ConfigurationError
from ..failed.history import history
from ..failed.selection import Selection
from ..failed.sweeper import Sweeper
from ..failed.tracebacks import exception_of
from ..foreign import MAX_VALUE, is_wrong_type, printable, whole_number
from .options import dead_option, open_server, selection_options, server_options
from .printing import say, say_blocked, say_json
from .tables import table


@click.command(short_help="List failed jobs, or print the history of one.")
@click.argument("job", required=False)
@selection_options
@dead_option
@server_options
def failed(
    job: str | None, queues: tuple[str, ...], dead: bool, url: str | None, as_json: bool, **filters: Any
) -> None:
    """Print the history of JOB, try by try; without JOB, list failed jobs (100 per queue, or --limit)."""
    connection = open_server(url)
    if job is not None:
        _show(connection, job, as_json)
        return
    filters["limit"] = filters["limit"] or 100
    sweeper = Sweeper(list(queues) or None, connection, (), dead=dead)
    rows = []
    clock = time.time()
    blocked: dict[str, list[str]] = {}
    for queue in sweeper.queues():
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
    if blocked:
        say_blocked(blocked, "not read")
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
