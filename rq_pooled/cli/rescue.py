"""``rq-pooled rescue``: jobs that are queued but stand in no list."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import click

from ..durations import parse_duration
from ..failed.sweeper import Sweeper
from ..foreign import MAX_VALUE, printable
from ..monitoring.audit import Deed
from ..queue.rescue import Lost, find_lost, put_back
from .audit import noted
from .options import open_server, server_options
from .printing import say, say_json

#: Jobs shown without --json.
_SHOWN = 20


@click.command(short_help="Find and put back queued jobs that stand in no list.")
@click.option("-q", "--queue", "queues", multiple=True, metavar="NAME", help="Only this queue; may be given again.")
@click.option("--older-than", default="1h", show_default=True, metavar="DURATION", help="Safety age: 10m, 1h30m, 2d.")
@click.option("--apply", is_flag=True, help="Put them back into their queues; without it they are only listed.")
@server_options
def rescue(queues: tuple[str, ...], older_than: str, apply: bool, url: str | None, as_json: bool) -> None:
    """Find jobs that are queued but stand in no list, and put them back.

    A stock worker that is killed right after it has popped a job from one of several queues loses it this way;
    workers of rq_pooled do not. A job that a program runs itself with rq.Queue(is_async=False) looks the same while
    it runs: hence the safety age, and a queue in which jobs have run that way is left out unless --queue names it.
    Jobs of rq_pooled.Queue(is_async=False) are never touched.
    """
    age = parse_duration(older_than, "--older-than")
    connection = open_server(url)
    skipped: set[str] = set()
    hidden = as_json or not sys.stderr.isatty()
    with click.progressbar(length=connection.dbsize(), label="looking", file=sys.stderr, hidden=hidden) as bar:
        lost = list(find_lost(connection, age, set(queues) or None, bar.update, skipped))
    for name in sorted(skipped):
        say(f"left out: {name}, in which programs run jobs themselves; --queue {name} looks at it too", err=True)
    # This is asked late: a lost job may be all that is left of its queue.
    if queues and not lost:
        Sweeper(list(queues), connection, ()).queues()
    what = f"older than {older_than}"
    begun = [Deed("rescue", name, None, what) for name in dict.fromkeys(job.queue for job in lost)] if apply else []
    with noted(connection, *begun) as under_way:
        found = put_back(connection, lost, apply)
        numbers = Counter(job.queue for job in found)
        under_way.deeds = [Deed("rescue", name, number, what) for name, number in numbers.items()] if apply else []
    if as_json:
        say_json({"applied": apply, "jobs": [job._asdict() for job in found]})
        return
    _say(found, apply)


def _say(found: list[Lost], apply: bool) -> None:
    for job in found[:_SHOWN]:
        say("  ".join(printable(word, MAX_VALUE) for word in job))
    if len(found) > _SHOWN:
        say(f"and {len(found) - _SHOWN} more")
    if not found:
        say("no lost jobs")
    elif apply:
        say(f"put back {_jobs(found)}")
    else:
        say(f"found {_jobs(found)}; --apply puts them back")


def _jobs(found: list[Any]) -> str:
    return f"{len(found)} job{'' if len(found) == 1 else 's'}"
