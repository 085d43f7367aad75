"""``rq-pooled schedule-sweep``: sweeps of failed jobs that come again, as jobs of rq-scheduler."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from typing import Any

import click
from redis import Redis
from rq.exceptions import InvalidJobOperation
from rq.job import Job

from ..errors import ConfigurationError, UnknownQueue
from ..failed.policies import Policy
from ..foreign import LAST_TIME, MAX_VALUE, is_text, names_key, printable, replies_of
from ..monitoring.audit import Deed
from ..store.keys import QUEUES, SCHEDULED_JOBS, job_key, queue_key
from ..store.unpickling import plain_meta
from ..wire import raw, text
from .audit import noted
from .options import open_server, server_options
from .printing import say, say_json
from .sweep import chosen_of, policy_of, sweep, words_of

#: What the job calls, with plain arguments.
FUNCTION = "rq_pooled.sweeper.sweep"
PREFIX = "rq_pooled-sweep-"
#: Seconds after which a sweep that hangs is ended.
TIMEOUT = 3600
#: Options of `rq-pooled sweep` that say nothing about a sweep that comes again.
_LEFT_OUT = {"url", "as_json", "dead", "dry_run"}
_EXAMPLES = """\b
Examples:
  rq-pooled schedule-sweep                                   list them
  rq-pooled schedule-sweep --cron "*/10 * * * *" -q mail --requeue --exception ConnectionError --times 5
  rq-pooled schedule-sweep --cron "0 4 * * *" --purge --older-than 30d --name monthly
  rq-pooled schedule-sweep --remove monthly"""


def schedule_sweep(
    cron: str | None,
    name: str | None,
    remove: str | None,
    in_queue: str,
    url: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """List, register (--cron) or remove recurring sweeps of failed jobs.

    Takes the options of `rq-pooled sweep`. A sweep has a name, by default made of what it does and the queues;
    registering a name again replaces it. A sweep is a job: `rq-pooled scheduler`, or a worker with --with-scheduler,
    enqueues it when it is due, and a worker that serves --in-queue runs it. Cron lines are read in local time.
    """
    if remove is not None:
        if cron is not None:
            raise click.UsageError("--remove excludes --cron.")
        connection = open_server(url)
        with noted(connection, Deed("schedule-sweep remove", "", None, remove)) as under_way:
            said = _remove(connection, remove)
            under_way.deeds = [Deed("schedule-sweep remove", "", None, said)]
        _show([], as_json, said)
        return
    if cron is None:
        given = [key for key, value in options.items() if value not in (None, (), False)]
        if given or name is not None:
            raise click.UsageError("give --cron to register a sweep, or no option to list them.")
        connection = open_server(url)
        _show(_sweeps(connection), as_json, "no recurring sweep")
        return
    queues = list(options.pop("queues"))
    policy = policy_of(options)
    connection = open_server(url)
    for queue in queues:
        if not connection.sismember(QUEUES, raw(queue_key(queue))):  # type: ignore[arg-type] # it takes bytes, too
            raise UnknownQueue(f"there is no queue {queue!r}: nothing was ever enqueued in it")
    name = name or _name(type(policy).__name__.lower(), queues)
    _check(cron, name, in_queue)
    words = f"{name}: {cron}, {type(policy).__name__.lower()} {words_of(policy)}"
    # Its name may tell all of them.
    with noted(connection, Deed("schedule-sweep", queues[0] if len(queues) == 1 else "", None, words)):
        _register(connection, cron, name, in_queue, queues, policy)
    _show([one for one in _sweeps(connection) if one["name"] == name], as_json, "")


def _check(cron: str, name: str, in_queue: str) -> None:
    """Refuse a line or a name that cannot be used. Raises ConfigurationError."""
    if not is_text(raw(in_queue)):
        raise ConfigurationError(f"--in-queue is {printable(in_queue, MAX_VALUE)}: RQ takes no name that is no text")
    # It is imported here, since few commands need rq-scheduler.
    from ..scheduler.mover import next_cron_time

    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigurationError(f"--name is {name}: use letters, digits, '-' and '_'")
    try:
        next_cron_time(cron)
    except (ValueError, KeyError) as error:
        raise ConfigurationError(f"--cron is {cron!r}: write it as '*/10 * * * *' or '0 4 * * *' ({error})") from None


def _register(connection: Redis, cron: str, name: str, in_queue: str, queues: list[str], policy: Policy) -> None:
    from ..scheduler.scheduler import Scheduler

    kind = type(policy).__name__.lower()
    chosen, what = chosen_of(policy), words_of(policy)
    Scheduler(in_queue, connection=connection).cron(
        cron,
        FUNCTION,
        kwargs={"queues": queues or None, "policy": kind, **chosen},
        id=PREFIX + name,
        timeout=TIMEOUT,
        description=f"{kind} failed jobs of {', '.join(queues) or 'all queues'}" + (f" ({what})" if what else ""),
    )


def _name(kind: str, queues: list[str]) -> str:
    """Return the name of a sweep of these queues: no others have it, whatever they are called."""
    queues = sorted(set(queues))
    said = "-".join([kind, *(queues or ["all"])])
    name = re.sub(r"[^A-Za-z0-9_-]", "_", said)
    # The queue "a_b" would be "a b", too, the queue "a-b" both "a" and "b", and the queue "all" all of them.
    ambiguous = name != said or len(queues) > 1 or queues == ["all"]
    return f"{name}-{sha256(repr(queues).encode()).hexdigest()[:8]}" if ambiguous else name


def _sweeps(connection: Redis) -> list[dict[str, Any]]:
    """Return what is registered; what has lost its job is forgotten."""
    found = []
    with names_key(SCHEDULED_JOBS):
        entries = sorted(connection.zscan_iter(SCHEDULED_JOBS, match=f"{PREFIX}*"))
    for word, due in entries:
        key = raw(job_key(text(word)))
        with connection.pipeline(transaction=False) as pipe:
            pipe.hexists(key, "data")
            pipe.hmget(key, "meta", "description", "origin", "status")
            exists, fields = replies_of(pipe)
        if not exists:
            connection.zrem(SCHEDULED_JOBS, word)
            continue
        meta, *texts = fields
        description, origin, status = (text(value or b"") for value in texts)
        cron = plain_meta(meta).get("cron_string")
        # What has no date in this calendar is due at its end, or at the first second.
        at = datetime.fromtimestamp(min(max(due, 0.0), LAST_TIME)).astimezone()
        found.append(
            {
                "name": text(word).removeprefix(PREFIX),
                "cron": cron if isinstance(cron, str) else None,
                "what": description,
                "in_queue": origin,
                "next": at.isoformat(timespec="minutes"),
                "last_status": status or None,
            }
        )
    return found


def _remove(connection: Redis, name: str) -> str:
    job_id = PREFIX + name
    with names_key(SCHEDULED_JOBS):
        removed = connection.zrem(SCHEDULED_JOBS, raw(job_id))
    # Without a status, a queue, or an id that RQ takes, it stands in no registry.
    with suppress(InvalidJobOperation, ValueError):
        # The job is not fetched, since that would unpickle what Redis holds.
        job = Job(job_id, connection=connection)
        job.origin = text(connection.hget(raw(job.key), "origin") or b"")
        job.delete()
    connection.delete(raw(job_key(job_id)))
    return f"{name}: removed" if removed else f"no recurring sweep is named {name}"


def _show(sweeps: list[dict[str, Any]], as_json: bool, otherwise: str) -> None:
    if as_json:
        say_json(sweeps)
        return
    for one in sweeps:
        say(f"{one['name']}: {one['cron']}  {one['what']}; next {one['next']}, in queue {one['in_queue']}")
    if not sweeps:
        say(otherwise)


command: Any = server_options(
    click.Command(
        "schedule-sweep",
        callback=schedule_sweep,
        help=schedule_sweep.__doc__,
        short_help="Sweep failed jobs again and again.",
        epilog=_EXAMPLES,
        params=[
            click.Option(["--cron"], metavar="LINE", help="When: five fields, such as '*/10 * * * *'."),
            click.Option(["--name"], help="Its name."),
            click.Option(["--remove"], metavar="NAME", help="Remove the sweep of this name."),
            click.Option(["--in-queue"], default="default", show_default=True, help="The queue that it runs in."),
            *(parameter for parameter in sweep.params if parameter.name not in _LEFT_OUT),
        ],
    )
)
