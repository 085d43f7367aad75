"""``rq-pooled sweep``, ``requeue`` and ``failed``: what operators do about failed jobs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
from redis import Redis
from redis.exceptions import RedisError, ResponseError
from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.registry import FailedJobRegistry

from ..config.secrets import scrub
from ..durations import parse_duration, show_duration
from ..errors import TRY_AGAIN, ConfigurationError, RQPooledError, SweepUnderWay
from ..failed.history import history
from ..failed.policies import DEAD_AGE, DEAD_COUNT, POLICIES, Policy, Requeue
from ..failed.selection import Selection
from ..failed.sweeper import Report, Sweeper
from ..foreign import MAX_VALUE, is_wrong_type, printable
from ..retry.backoff import Backoff
from ..store.scripts import dead_letters_key
from ..wire import raw, text
from .options import open_server, server_options
from .printing import say, say_json

_VERBS = {"requeue": "requeued", "bury": "buried", "purge": "deleted", "ghosts": "ghosts dropped"}


def _seconds(_context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Return the seconds of an option that takes a duration. Raises ConfigurationError."""
    return None if value is None else parse_duration(value, f"--{(parameter.name or '').replace('_', '-')}")


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say which failed jobs are meant."""
    for option in (
        click.option("--limit", type=click.IntRange(1), help="Jobs at most in each queue, the oldest first."),
        click.option("--older-than", callback=_seconds, metavar="AGE", help="That failed so long ago: 45s, 10m, 2d."),
        click.option("--function", "functions", multiple=True, metavar="NAME", help="Of this function; * and ? count."),
        click.option("--exception", "exceptions", multiple=True, metavar="NAME", help="That failed with this."),
        click.option("--queue", "-q", "queues", multiple=True, metavar="NAME", help="Of this queue; else of all."),
    ):
        command = option(command)
    return command


dry_run_option = click.option("--dry-run", is_flag=True, help="Change nothing, and tell what would be done.")
dead_option = click.option("--dead", is_flag=True, help="Dead letters instead of the failed registry.")


@click.command(short_help="Requeue, bury or purge failed jobs, or drop ghosts.")
@click.option("--requeue", "action_requeue", is_flag=True, help="Put them back into their queues.")
@click.option("--bury", "action_bury", is_flag=True, help="Move them to the dead letters of their queue.")
@click.option("--purge", "action_purge", is_flag=True, help="Delete them.")
@click.option("--ghosts", "action_ghosts", is_flag=True, help="Drop entries whose job is gone.")
@selection_options
@click.option("--times", type=click.IntRange(1), help="--requeue: at most so often per job, in all.")
@click.option("--delay", callback=_seconds, metavar="TIME", help="--requeue: later; doubled for each earlier time.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="--requeue: jobs per second at most.")
@click.option("--beyond", type=click.IntRange(0), metavar="N", help="--purge: also all but the newest N.")
@click.option("--max-age", callback=_seconds, metavar="AGE", help=f"--bury: keep for [{show_duration(DEAD_AGE)}].")
@click.option("--max-count", type=click.IntRange(0), help=f"--bury: keep at most [{DEAD_COUNT}].")
@click.option("--all", "everything", is_flag=True, help="--purge: without any filter.")
@dead_option
@dry_run_option
@server_options
def sweep(queues: tuple[str, ...], dead: bool, dry_run: bool, url: str | None, as_json: bool, **options: Any) -> None:
    """Requeue, bury or purge failed jobs, or drop ghosts: exactly one of these.

    \b
      rq-pooled sweep -q default --requeue --exception ConnectionError --older-than 10m --limit 1000 --dry-run
      rq-pooled sweep --bury --older-than 7d
      rq-pooled sweep --purge --older-than 30d --beyond 10000

    Names of exceptions are as in a traceback, with or without their module; subclasses count where they are built in.
    """
    policy = _policy(options)
    _run(Sweeper(list(queues) or None, open_server(url), policy, dead=dead), dry_run, as_json)


def _policy(options: dict[str, Any]) -> Policy:
    """Return the one policy that was asked for; options of another one are refused."""
    actions = [name for name in _VERBS if options.pop(f"action_{name}")]
    if len(actions) != 1:
        raise click.UsageError("give exactly one of --requeue, --bury, --purge, --ghosts")
    (action,) = actions
    everything = options.pop("everything")
    given = {name: value for name, value in options.items() if value not in (None, ())}
    known = {"exceptions", "functions", "older_than", "limit"} if action != "ghosts" else set()
    known |= {"requeue": {"times", "delay", "rate"}, "bury": {"max_age", "max_count"}, "purge": {"beyond"}}.get(
        action, set()
    )
    for name in given:
        if name not in known:
            flag = name.rstrip("s") if name in ("exceptions", "functions") else name.replace("_", "-")
            raise click.UsageError(f"--{flag} means nothing with --{action}")
    if "delay" in given:
        base = max(1.0, given["delay"])
        given["delay"] = Backoff(max=20, base=base, cap=max(base, 86_400), jitter="equal")
    if action == "purge" and not given.keys() - {"limit"} and not everything:
        raise click.UsageError("--purge deletes jobs: say which (--older-than, --beyond, --exception …) or --all")
    return POLICIES[action](**given)


@click.command(short_help="Put failed jobs back into their queues.")
@click.argument("ids", nargs=-1, metavar="[JOB]...")
@click.option("--all", "everything", is_flag=True, help="All failed jobs.")
@selection_options
@click.option("--at-front", is_flag=True, help="To the front of their queues.")
@click.option("--retries", type=click.IntRange(0), help="Retries to give to each, instead of as many as it had.")
@dead_option
@dry_run_option
@server_options
def requeue(
    ids: tuple[str, ...],
    everything: bool,
    queues: tuple[str, ...],
    at_front: bool,
    retries: int | None,
    dead: bool,
    dry_run: bool,
    url: str | None,
    as_json: bool,
    **filters: Any,
) -> None:
    """Put failed jobs back into their queues, with as many retries as they had at first.

    \b
      rq-pooled requeue 6d1fb8a0-5d0f-4e21-8c8b-5f6a2f5d7a11
      rq-pooled requeue -q default --exception ConnectionError --older-than 10m
      rq-pooled requeue --all

    Each job changes in one step; entries whose job is gone are dropped on the way.
    """
    filtered = any(value not in (None, ()) for value in filters.values())
    if bool(ids) + (everything or filtered) != 1:
        raise click.UsageError(
            "give ids of jobs, or a filter (--exception, --function, --older-than, --limit), or --all: one of the three"
        )
    connection = open_server(url)
    if ids:
        policy = Requeue(at_front=at_front, retries=retries)
        _requeue_ids(connection, ids, queues, policy, dead, dry_run, as_json)
        return
    policy = Requeue(at_front=at_front, retries=retries, **filters)
    _run(Sweeper(list(queues) or None, connection, policy, dead=dead), dry_run, as_json)


def _requeue_ids(
    connection: Redis,
    ids: tuple[str, ...],
    queues: tuple[str, ...],
    policy: Requeue,
    dead: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Requeue single jobs, wherever they stand; those that cannot be are named, and are no error."""
    words = {}
    for job_id in ids:
        try:
            words[job_id] = _requeue_id(connection, job_id, queues, policy, dead, dry_run)
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            words[job_id] = "unreadable"
    if as_json:
        say_json({"dry_run": dry_run, "jobs": words})
        return
    said = {
        "done": "would be requeued" if dry_run else "requeued",
        "ghost": "is gone; its entry was removed",
        "gone": "is not among the failed jobs",
        "changed": "has not failed, or does not any more",
        "unreadable": "cannot be read: a key of another type",
    }
    for job_id, word in words.items():
        say(f"{printable(job_id, MAX_VALUE)} {said.get(word, word)}")


def _requeue_id(
    connection: Redis, job_id: str, queues: tuple[str, ...], policy: Requeue, dead: bool, dry_run: bool
) -> str:
    origin = connection.hget(raw(Job.key_for(job_id)), "origin")
    for queue in queues or ([text(origin)] if origin else []):
        for in_dead in (True,) if dead else (False, True):
            registry = dead_letters_key(queue) if in_dead else FailedJobRegistry.key_template.format(queue)
            if connection.zscore(raw(registry), raw(job_id)) is None:
                continue
            if dry_run:
                return "done"
            word = Sweeper(queue, connection, policy, dead=in_dead).requeue_ids(queue, [job_id], policy)[job_id]
            if word != "gone":
                return word
    return "gone"


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
    for row in rows if not as_json else ():
        ago = "?" if row["seconds_ago"] is None else show_duration(max(0.0, float(row["seconds_ago"])))
        words = (printable(row[name] or "-", MAX_VALUE) for name in ("id", "queue", "function", "exception"))
        say("  ".join([*words, f"{ago} ago"]))
    if blocked:
        _name(blocked, "not read")
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
    left = f", {past['retries_left']} retries left" if past["retries_left"] else ""
    head = [printable(word, MAX_VALUE) for word in (job_id, past["origin"], past["description"] or "")]
    say("  ".join(head), f"{past['status']}{left}")
    if not past["tries"]:
        say("no try is recorded")
    for number, one in enumerate(past["tries"], 1):
        took = "" if one["seconds"] is None else f" after {one['seconds']:g} s"
        then = f"; next try {one['next_try']}" if one["next_try"] else ""
        say(f"{number:>3}. {one['at']}  {one['result']}{took}: {one['error'] or '-'}{then}")


def _run(sweeper: Sweeper, dry_run: bool, as_json: bool) -> None:
    """Sweep, on a terminal with a progress bar, and say what was done."""
    shown = sys.stderr.isatty() and not as_json
    with click.progressbar(length=1, label="failed jobs", file=sys.stderr, hidden=not shown) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        ended: BaseException | None = None
        try:
            sweeper.run(dry_run, progress=progress if shown else None)
        except (RQPooledError, RedisError, KeyboardInterrupt) as error:
            ended = error  # what was done until then is told first
    _tell(sweeper.reports, as_json, complete=ended is None)
    blocked: dict[str, list[str]] = {}
    for report in sweeper.reports:
        if report.error:
            blocked.setdefault(report.error, []).append(report.queue)
    _name(blocked, "not swept to the end")
    if blocked and isinstance(ended, (SweepUnderWay, ResponseError)):
        click.get_current_context().exit(TRY_AGAIN)
    if ended is not None:
        raise ended


def _name(blocked: dict[str, list[str]], what: str) -> None:
    """Say of which queues something was not done, a line for each reason."""
    for words, queues in blocked.items():
        named = ", ".join(printable(queue, MAX_VALUE) for queue in queues)
        say(" ".join(f"rq-pooled: {named}: {what}: {scrub(words)}".split()), err=True)


def _tell(reports: Sequence[Report], as_json: bool, complete: bool) -> None:
    if as_json and (reports or complete):
        say_json([report.as_dict() for report in reports])
    if as_json:
        return
    for report in reports:
        if report.done or report.ghosts or report.changed or report.spent or report.trimmed:
            say(_sentence(report))
    if complete and not any(report.done for report in reports):
        say("no job matches" if reports else "there are no queues")


def _sentence(report: Report) -> str:
    verb = _VERBS[report.policy]
    parts = [f"{report.done} {'would be ' if report.dry_run and report.policy != 'ghosts' else ''}{verb}"]
    if report.dry_run and report.policy == "ghosts":
        parts = [f"{report.done} ghosts would be dropped"]
    parts += [f"{report.ghosts} ghosts met"] if report.ghosts else []
    parts += [f"{report.changed} changed meanwhile"] if report.changed else []
    parts += [f"{report.spent} requeued too often already"] if report.spent else []
    parts += [f"{report.trimmed} older dead letters deleted"] if report.trimmed else []
    return f"{printable(report.queue, MAX_VALUE)}: {', '.join(parts)} (of {report.looked_at})"
