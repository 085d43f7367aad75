"""Who works: RQ's registered workers, stock ones too, by process, and the jobs that stand in started registries.

Nothing is unpickled. Jobs that a worker has claimed ahead stand there, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from typing import Any

from redis import Redis

from ..failed.description import described
from ..failed.listing import MAX_FIELD, origins_of
from ..foreign import LAST_TIME, plain, replies_of, seconds_of, whole_number
from ..store.keys import (
    EXECUTION,
    HOLD_COMMAND,
    WORKER,
    WORKERS,
    commands_channel,
    executions_key,
    job_key,
    registry_key,
)
from ..store.queues import first_queues
from ..store.views import is_shown, note_cut
from ..wire import raw, text
from .processes import processes

#: Workers, and jobs of one queue, that are looked at.
MOST, JOBS = 500, 100
#: Names of workers that are read to find the first of them.
_READ = 20 * MOST
_FIELDS = ("hostname", "pid", "queues", "state", "birth", "last_heartbeat")


def workers(client: Redis) -> list[dict[str, Any]]:
    """Return the processes of workers all of whose queues may be shown. Blocks for about eight round trips.

    Each has ``host``, ``pid``, ``names`` (one for each slot), ``queues``, ``state`` (``busy`` if a slot is), ``since``
    and ``seen`` (seconds since the epoch or None). Of workers of rq_pooled it has ``held`` (told to claim nothing),
    ``horses`` (pids), ``memory``, ``replaced`` (horses forked in place of others) and ``slots``; else None.
    """
    keys = sorted(islice(client.sscan_iter(WORKERS, count=MOST), _READ))[:MOST]
    pipeline: Any = client.pipeline(transaction=False)
    for key in keys:
        pipeline.hmget(key, *_FIELDS)
    ours = {one["worker"]["name"]: one["worker"] for one in processes(client) if one["worker"]}
    # Containers may have the same host and pid. The slots of one process have begun at the same microsecond.
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for key, fields in zip(keys, replies_of(pipeline) if keys else ()):
        host, pid, queues, state, birth, seen = (text(value or b"") for value in fields or [None] * 6)
        names = [name for name in queues.split(",") if name]
        if not host or not all(map(is_shown, names)):
            continue
        name = text(key).removeprefix(WORKER)
        one = found.setdefault(
            (host, f"{whole_number(pid):20}", birth or name),
            {"host": plain(host), "pid": whole_number(pid), "names": [], "queues": [], "state": "idle"},
        )
        one["names"].append(name)
        one["queues"] += [queue for queue in names if queue not in one["queues"]]
        one["state"] = "busy" if "busy" in (state, one["state"]) else plain(state)
        one["since"], one["seen"] = seconds_of(birth), seconds_of(seen)
    for one in found.values():
        worker = next((ours[name] for name in one["names"] if name in ours), None)
        one["held"] = worker and worker["held"]
        one["horses"] = worker and worker["horses"]
        one["memory"] = worker and worker["memory"]
        one["replaced"] = worker and worker["counters"]["horses_replaced"]
        one["slots"] = worker and worker["concurrency"]
    return [found[place] for place in sorted(found)]


def running(client: Redis) -> list[dict[str, Any]]:
    """Return the jobs in started registries of queues that may be shown, those that began first. Blocks for four trips.

    Each has ``id``, ``execution``, ``queue``, ``worker``, ``what`` and ``since`` (seconds since the epoch or None).
    """
    names = first_queues(client.execute_command)
    pipeline: Any = client.pipeline(transaction=False)
    for name in names:
        pipeline.zrange(raw(registry_key("wip", name)), 0, JOBS)
    registries = [found or () for found in (replies_of(pipeline) if names else ())]
    if any(len(found) > JOBS for found in registries):
        note_cut()
    return _claims(client, [(name, text(one)) for name, found in zip(names, registries) for one in found[:JOBS]])


def claims_of(client: Redis, job_id: str) -> list[dict[str, Any]]:
    """Return what ``running`` does, of one job, however many others run. Blocks for five round trips, or nine."""
    (name,) = origins_of(client, [job_id])
    pipeline: Any = client.pipeline(transaction=False)
    pipeline.zrange(raw(executions_key(job_id)), 0, JOBS - 1)
    members = [f"{job_id}:{text(execution)}" for execution in replies_of(pipeline)[0] or ()]
    for member in members:
        pipeline.zscore(raw(registry_key("wip", name)), raw(member))
    scores = replies_of(pipeline) if members else ()
    found = _claims(client, [(name, member) for member, score in zip(members, scores) if score is not None])
    # Others may have written executions before its own; then it may be among the first of its registry.
    return found or [one for one in running(client) if one["id"] == job_id]


def _claims(client: Redis, claims: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    pipeline: Any = client.pipeline(transaction=False)
    for _, member in claims:
        pipeline.hmget(raw(EXECUTION + member), "worker_name", "created_at")
        pipeline.hstrlen(raw(job_key(member.rpartition(":")[0])), "description")
    replies = replies_of(pipeline) if claims else []
    for (_, member), size in zip(claims, replies[1::2]):
        field = "description" if 0 < (size or 0) <= MAX_FIELD else ""
        pipeline.hmget(raw(job_key(member.rpartition(":")[0])), field, "origin")
    entries = []
    for (name, member), fields, of_job in zip(claims, replies[::2], replies_of(pipeline) if claims else ()):
        description, origin = of_job or (None, None)
        # An entry may be of a job that is another queue's.
        if origin and not is_shown(text(origin)):
            continue
        job_id, _, execution = member.rpartition(":")
        worker, since = fields or (None, None)
        entries.append(
            {
                "id": job_id,
                "execution": execution,
                "queue": name,
                "worker": text(worker or b""),
                "what": described(plain(description or b"")) or plain(job_id),
                "since": _moment(text(since or b"")),
            }
        )
    return sorted(entries, key=lambda one: (one["since"] or 0.0, one["id"]))


def stop_job(client: Redis, worker: str, job_id: str, queues: Sequence[str]) -> None:
    """Tell a worker to stop a job of these queues, as RQ does it: the job fails as stopped. Blocks for a round trip."""
    _send(client, worker, "stop-job", job_id=job_id, queues=queues)


def shut_down(client: Redis, worker: str, queues: Sequence[str]) -> None:
    """Tell a worker of these queues to claim no more, and to end with its running jobs. Blocks for a round trip."""
    _send(client, worker, "shutdown", queues=queues)


def hold(client: Redis, worker: str, held: bool, queues: Sequence[str]) -> None:
    """Tell a worker of rq_pooled and of these queues to claim nothing more, going on with what runs; or to claim again.

    Blocks for a round trip. It holds until the worker ends or is told again; one that starts anew claims.
    """
    _send(client, worker, HOLD_COMMAND, held=held, queues=queues)


def _send(client: Redis, worker: str, command: str, **more: Any) -> None:
    client.publish(raw(commands_channel(worker)), json.dumps({"command": command, **more}))


def _moment(word: str) -> float | None:
    try:
        seconds = float(word)
    except ValueError:
        return seconds_of(word)
    return seconds if 0 <= seconds < LAST_TIME else None
