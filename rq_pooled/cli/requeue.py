"""``rq-pooled requeue``: puts failed jobs back into their queues."""

from __future__ import annotations

from typing import Any

import click
from redis import Redis
from redis.exceptions import ResponseError
from rq.job import Job
from rq.registry import FailedJobRegistry

from ..failed.listing import origins_of
from ..failed.policies import Requeue
from ..failed.sweeper import Sweeper
from ..foreign import MAX_VALUE, is_wrong_type, printable
from ..monitoring.audit import Deed
from ..store.keys import dead_letters_key
from ..wire import raw, text
from .audit import noted
from .options import dead_option, dry_run_option, open_server, selection_options, server_options
from .printing import say, say_json
from .sweep import run, said_all


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
    said_all(policy, everything)
    run(connection, list(queues) or None, policy, dead, dry_run, as_json)


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
    words: dict[str, str] = {}
    done: dict[str, list[str]] = {}
    places: dict[str, list[str]] = {name: list(ids) for name in queues}
    for job_id, name in zip(ids, [] if dry_run or queues else origins_of(connection, ids)):
        # An entry is for who may view its queue, and names no job of another.
        if name:
            places.setdefault(name, []).append(job_id)
    begun = [] if dry_run else [Deed("requeue", name, None, f"of {', '.join(some)}") for name, some in places.items()]
    with noted(connection, *begun) as under_way:
        for job_id in ids:
            try:
                words[job_id], queue = _requeue_id(connection, job_id, queues, policy, dead, dry_run)
            except ResponseError as error:
                if not is_wrong_type(error):
                    raise
                words[job_id] = "unreadable"
            else:
                if words[job_id] == "done":
                    done.setdefault(queue, []).append(job_id)
            deeds = [Deed("requeue", name, len(some), f"of {', '.join(some)}") for name, some in done.items()]
            # Those that are still to be tried: of one whose answer is lost, it is not known what became of it.
            left = {name: [one for one in some if one not in words] for name, some in places.items()}
            deeds += [Deed("requeue", name, None, f"of {', '.join(some)}") for name, some in left.items() if some]
            under_way.deeds = [] if dry_run else deeds
        under_way.deeds = [one for one in under_way.deeds if one.jobs]
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
) -> tuple[str, str]:
    """Return what came of it, and the queue in which the job was found."""
    origin = connection.hget(raw(Job.key_for(job_id)), "origin")
    for queue in queues or ([text(origin)] if origin else []):
        for in_dead in (True,) if dead else (False, True):
            registry = dead_letters_key(queue) if in_dead else FailedJobRegistry.key_template.format(queue)
            if connection.zscore(raw(registry), raw(job_id)) is None:
                continue
            if dry_run:
                return "done", queue
            word = Sweeper(queue, connection, policy, dead=in_dead).requeue_ids(queue, [job_id], policy)[job_id]
            if word != "gone":
                return word, queue
    return "gone", ""
