"""``rq-pooled sweep``: requeues, buries or deletes failed jobs, or drops ghosts."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from ..durations import show_duration
from ..errors import TRY_AGAIN, RQPooledError, SweepUnderWay
from ..failed.policies import DEAD_AGE, DEAD_COUNT, POLICIES, Ghosts, Policy, Purge, Requeue
from ..failed.report import Report
from ..failed.sweeper import Sweeper
from ..foreign import MAX_VALUE, printable
from ..monitoring.audit import Deed
from ..retry.backoff import Backoff
from .audit import noted
from .options import as_seconds, dead_option, dry_run_option, open_server, selection_options, server_options
from .printing import say, say_blocked, say_json

_VERBS = {"requeue": "requeued", "bury": "buried", "purge": "deleted", "ghosts": "ghosts dropped"}


@click.command(short_help="Requeue, bury or purge failed jobs, or drop ghosts.")
@click.option("--requeue", "action_requeue", is_flag=True, help="Put them back into their queues.")
@click.option("--bury", "action_bury", is_flag=True, help="Move them to the dead letters of their queue.")
@click.option("--purge", "action_purge", is_flag=True, help="Delete them.")
@click.option("--ghosts", "action_ghosts", is_flag=True, help="Drop entries whose job is gone.")
@selection_options
@click.option("--times", type=click.IntRange(1), help="--requeue: at most so often per job, in all.")
@click.option("--delay", callback=as_seconds, metavar="TIME", help="--requeue: later; doubled for each earlier time.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="--requeue: jobs per second at most.")
@click.option("--beyond", type=click.IntRange(0), metavar="N", help="--purge: also all but the newest N.")
@click.option("--max-age", callback=as_seconds, metavar="AGE", help=f"--bury: keep for [{show_duration(DEAD_AGE)}].")
@click.option("--max-count", type=click.IntRange(0), help=f"--bury: keep at most [{DEAD_COUNT}].")
@click.option("--all", "everything", is_flag=True, help="--purge, --requeue: all, where no filter leaves one out.")
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
    policy = policy_of(options)
    run(open_server(url), list(queues) or None, policy, dead, dry_run, as_json)


def policy_of(options: dict[str, Any]) -> Policy:
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
    if everything and action in ("bury", "ghosts"):
        raise click.UsageError(f"--all means nothing with --{action}")
    if action == "purge":
        given["everything"] = True  # to see whether they are; it is what was said below
    policy = POLICIES[action](**given)
    if isinstance(policy, Purge):
        policy = dataclasses.replace(policy, everything=said_all(policy, everything))
    elif isinstance(policy, Requeue):
        said_all(policy, everything)
    return policy


def said_all(policy: Purge | Requeue, everything: bool) -> bool:
    """Return ``everything``, refused where the filters say otherwise; a limit is a filter only of what is requeued."""
    purge = isinstance(policy, Purge)
    if policy.chooses and everything:
        raise click.UsageError("--all and a filter exclude each other: leave one out")
    if not policy.chooses and not everything and (purge or policy.limit is None):
        which = (
            "--older-than above 0, --exception …, --beyond above 0" if purge else "--older-than above 0, --exception …"
        )
        raise click.UsageError(
            f"this would {'delete' if purge else 'requeue'} every failed job: say which ({which}), or --all"
        )
    return everything


def words_of(policy: Policy) -> str:
    """Return what a policy leaves out or adds, for people; "" for one that is as it is by default."""
    return ", ".join(f"{name} {_words(name, value)}" for name, value in chosen_of(policy).items())


def chosen_of(policy: Policy) -> dict[str, Any]:
    """Return the values of a policy that are not its defaults."""
    fields = [one for one in dataclasses.fields(policy) if one.init]
    return {one.name: value for one in fields if (value := getattr(policy, one.name)) not in (None, (), one.default)}


def _words(key: str, value: Any) -> str:
    if key in ("older_than", "max_age"):
        return show_duration(value)
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def run(connection: Redis, queues: list[str] | None, policy: Policy, dead: bool, dry_run: bool, as_json: bool) -> None:
    """Sweep, on a terminal with a progress bar, write down what was done, and say it."""
    sweeper = Sweeper(queues, connection, policy, dead=dead)
    shown = sys.stderr.isatty() and not as_json
    with click.progressbar(length=1, label="failed jobs", file=sys.stderr, hidden=not shown) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        action = "sweep" if isinstance(policy, Ghosts) else type(policy).__name__.lower()
        words = ", ".join(filter(None, (words_of(policy), "dead letters" if dead else "")))
        begun = [] if dry_run else [Deed(action, name, None, words) for name in queues or ("",)]
        ended: BaseException | None = None
        with noted(connection, *begun) as under_way:
            try:
                sweeper.run(dry_run, progress=progress if shown else None)
            except (RQPooledError, RedisError, KeyboardInterrupt) as error:
                # What was done until then is told first.
                ended = error
            under_way.failed = ended is not None
            if not dry_run:
                under_way.deeds = [*_deeds(sweeper.reports, action, words, ended)]
    _tell(sweeper.reports, as_json, complete=ended is None)
    blocked: dict[str, list[str]] = {}
    for report in sweeper.reports:
        if report.error:
            blocked.setdefault(report.error, []).append(report.queue)
    say_blocked(blocked, "not swept to the end")
    if blocked and isinstance(ended, (SweepUnderWay, ResponseError)):
        click.get_current_context().exit(TRY_AGAIN)
    if ended is not None:
        raise ended


def _deeds(reports: Sequence[Report], action: str, words: str, ended: BaseException | None) -> Iterator[Deed]:
    """Yield what a sweep did to each queue, and which of them it left half done."""
    for one in reports:
        # An error that is no queue's own has ended all of it.
        broken = one.error if isinstance(ended, ResponseError) else ended is not None and one is reports[-1]
        broken = broken and not isinstance(ended, SweepUnderWay)
        if one.done or one.ghosts or one.trimmed or broken:
            yield Deed(action, one.queue, one.done, ", ".join(filter(None, ("broken off" if broken else "", words))))


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
