"""A web process of a fleet: ``python fleet_web.py URL stock|ours WHAT [ARGUMENT]`` prints what it has done as JSON."""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from typing import Any

import rq
from redis import Redis
from rq import Callback, Repeat, Retry
from rq.command import send_stop_job_command
from rq.job import Dependency, Job

#: id -> [status at the end, runs, final results]; a status of None is that of a job which is deleted with its end.
ENDS: dict[str, list[Any]] = {
    **{f"ok-{i}": ["finished", 1, 1] for i in range(20)},
    "front": ["finished", 1, 1],
    "bad": ["failed", 1, 1],
    "again": ["finished", 3, 1],
    "later": ["finished", 2, 1],
    "returned": ["finished", 2, 1],
    "in-1-s": ["finished", 1, 1],
    "repeated": ["finished", 2, 2],
    "parent": ["finished", 1, 1],
    "second-parent": ["finished", 1, 1],
    "child": ["finished", 1, 1],
    "grandchild": ["finished", 1, 1],
    "after-bad": ["finished", 1, 1],
    "never": ["deferred", 0, 0],
    "called": ["finished", 1, 1],
    "gone": [None, 1, 0],
    "unique": ["finished", 1, 1],
}


def enqueue_all(queue: Any) -> dict[str, list[Any]]:
    """Enqueue a job of each kind; return what is to become of each."""
    for i in range(20):
        queue.enqueue("fleet_jobs.note", job_id=f"ok-{i}")
    queue.enqueue("fleet_jobs.note", job_id="front", at_front=True)
    bad = queue.enqueue("fleet_jobs.fail", job_id="bad")
    queue.enqueue("fleet_jobs.fail_while_retries_are_left", job_id="again", retry=Retry(2))
    queue.enqueue("fleet_jobs.fail_while_retries_are_left", job_id="later", retry=Retry(1, interval=1))
    queue.enqueue("fleet_jobs.ask_for_one_retry", job_id="returned")
    queue.enqueue_in(timedelta(seconds=1), "fleet_jobs.note", job_id="in-1-s")
    queue.enqueue("fleet_jobs.note", job_id="repeated", repeat=Repeat(times=1, interval=1))
    parents = [queue.enqueue("fleet_jobs.note", 0.2, job_id=name) for name in ("parent", "second-parent")]
    child = queue.enqueue("fleet_jobs.note", job_id="child", depends_on=parents)
    queue.enqueue("fleet_jobs.note", job_id="grandchild", depends_on=child)
    queue.enqueue("fleet_jobs.note", job_id="after-bad", depends_on=Dependency([bad], allow_failure=True))
    queue.enqueue("fleet_jobs.note", job_id="never", depends_on=bad)
    queue.enqueue("fleet_jobs.note", job_id="called", on_success=Callback("fleet_jobs.called_back"))
    queue.enqueue("fleet_jobs.note", job_id="gone", result_ttl=0)
    queue.enqueue("fleet_jobs.note", job_id="unique", unique=True)
    return ENDS


def enqueue_for(queue: Any, seconds: float) -> list[str]:
    """Enqueue jobs of 0.1 s, one in four with a dependent, for some time; return their ids."""
    ids, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        job = queue.enqueue("fleet_jobs.note", 0.1, job_id=f"s-{len(ids)}")
        ids.append(job.id)
        if len(ids) % 4 == 0:
            ids.append(queue.enqueue("fleet_jobs.note", job_id=f"s-{len(ids)}", depends_on=job).id)
        time.sleep(0.02)
    return ids


def look(connection: Any) -> dict[str, Any]:
    """Return what this RQ shows of workers: name -> (state, the job that it runs)."""
    workers = rq.Worker.all(connection=connection)
    return {worker.name: [str(worker.get_state()), worker.get_current_job_id()] for worker in workers}


def main() -> Any:
    """Do one thing."""
    url, kind, what, *more = sys.argv[1:]
    if kind == "ours":
        import rq_pooled

        queue_class: Any = rq_pooled.Queue
    else:
        queue_class = rq.Queue
    with Redis.from_url(url) as connection:
        queue = queue_class("default", connection=connection)
        if what == "all":
            return enqueue_all(queue)
        if what == "for":
            return enqueue_for(queue, float(more[0]))
        if what == "look":
            return look(connection)
        if what == "stop":
            return send_stop_job_command(connection, more[0])
        if what == "requeue":
            return Job.fetch(more[0], connection=connection).requeue().id
        if what == "limited":
            return [
                queue.enqueue("fleet_jobs.note", job_id=f"l-{i}", rate_limit=rq.RateLimit("k", 1)).get_status().value
                for i in range(3)
            ]
        if what == "fetch":
            try:
                return str(Job.fetch(more[0], connection=connection).get_status().value)
            except ValueError as error:
                return f"ValueError: {error}"
        raise ValueError(what)


if __name__ == "__main__":
    print(json.dumps([rq.VERSION, main()]))
