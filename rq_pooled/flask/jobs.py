"""The pages on failed jobs and dead letters: a list, one job with its tries, and what is done to some of them.

Each page has an address, an action answers with a redirect, and what destroys is confirmed on a page of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from flask import request
from redis import Redis
from rq.exceptions import NoSuchJobError

from ..errors import ConfigurationError, UnknownQueue
from ..failed.actions import act_on
from ..failed.groups import GHOST, NEWEST, jobs_of_group
from ..failed.history import history, no_job
from ..failed.listing import failed_jobs, origins_of
from ..foreign import printable, seconds_of
from ..monitoring.audit import Deed
from ..monitoring.processes import server_time
from ..monitoring.words import count, moment
from ..store.queues import queue_names
from .notices import answer
from .page import fits_a_form
from .parameters import asked_for, flag, number, page_of_form, posted
from .rights import BURY, PURGE, REQUEUE, VIEW
from .trail import noted
from .views import Views, page_of

#: Jobs on one page of the list, and characters of a traceback that are shown.
PAGE, MAX_TRACEBACK = 50, 40_000
#: What can be done to jobs -> what the page that follows says was done, and the right that it needs.
ACTS = {"requeue": ("requeued", REQUEUE), "bury": ("buried", BURY), "delete": ("purged", PURGE)}
_DEAD = {False: "", True: ", dead letters"}


def add_job_pages(views: Views) -> None:
    """Add the pages."""
    rights = views.rights

    def acts(redis: Redis, queue: str | None, dead: bool) -> list[str]:
        """Return what the request may do to failed jobs of a queue, or of any queue."""
        names = queue_names(redis.execute_command) if queue is None else [queue]
        return [
            act
            for act, (_, right) in ACTS.items()
            if not (dead and act == "bury") and any(rights.may(right, name) for name in names)
        ]

    def may_act(redis: Redis, act: str, ids: list[str]) -> list[str]:
        """Return those of these jobs that the request may see; 403 if it may not do this to one of them."""
        found = [(one, name) for one, name in zip(ids, origins_of(redis, ids)) if name and rights.may(VIEW, name)]
        for _, name in found:
            rights.require(ACTS[act][1], name)
        return [one for one, _ in found]

    @views.get("/failed")
    def failed(redis: Redis) -> Any:
        asked_for("queue", "exception", "function", "dead", "offset", "did")
        dead, offset, group = flag(request.args, "dead"), number(request.args, "offset", 0), _group(request.args)
        queue = request.args.get("queue") or None
        if queue is not None:
            rights.require(VIEW, queue)
        now = server_time(redis)
        if group is not None:
            looked_at, found = jobs_of_group(redis, *group, dead)
            total, jobs = len(found), found[offset : offset + PAGE]
        else:
            listed = failed_jobs(queue, offset=offset, limit=PAGE, connection=redis, dead=dead)
            total, jobs, looked_at = listed["total"], listed["jobs"], None
        allowed = acts(redis, queue, dead)
        rows = [
            {
                **job,
                "failed": moment(job["failed_at"], now),
                "has_link": job["exists"] and fits_a_form(job["id"]),
            }
            for job in jobs
        ]
        asked = {"queue": queue, "dead": 1 if dead else None}
        if group is not None:
            asked.update(exception=group[1], function=group[2])
        return page_of(
            "jobs",
            redis,
            {"asked": asked},
            jobs=rows,
            total=total,
            looked_at=looked_at,
            group=group and dict(zip(("queue", "exception", "function"), group)),
            queue=queue,
            dead=dead,
            ghosts=group is not None and group[1] == GHOST,
            first=offset + 1 if jobs else 0,
            last=offset + len(jobs),
            before=max(0, offset - PAGE) if offset else None,
            after=offset + PAGE if offset + PAGE < total else None,
            acts=allowed,
        )

    @views.get("/job")
    def job(redis: Redis) -> Any:
        job_id = asked_for("id", "did").get("id", "")
        try:
            found = history(redis, job_id)
        except NoSuchJobError as error:
            raise UnknownQueue(str(error)) from None
        if not rights.may(VIEW, found["origin"] or ""):
            raise UnknownQueue(str(no_job(job_id)))
        near = [one for one in (found["dependency_id"], *found["dependents"]) if one]
        hidden = {one for one, name in zip(near, origins_of(redis, near)) if not rights.may(VIEW, name)}
        now = server_time(redis)
        if hidden:
            found["dependents"] = [one for one in found["dependents"] if one not in hidden]
            found["dependent_count"] = len(found["dependents"])
            found["dependency_id"] = None if found["dependency_id"] in hidden else found["dependency_id"]
        tries = found.pop("tries")
        times = ("created_at", "enqueued_at", "started_at", "ended_at")
        found["times"] = [(name[:-3], moment(seconds_of(found.pop(name)), now)) for name in times]
        for number_of, one in enumerate(tries, 1):
            lines = _cut(one.pop("traceback")).splitlines()
            one.update(number=number_of, at=moment(seconds_of(one["at"]), now), lines=lines)
        return page_of(
            "job",
            redis,
            job=found,
            tries=tries[::-1],
            acts=[
                act
                for act, (_, right) in ACTS.items()
                if fits_a_form(found["id"]) and rights.may(right, found["origin"] or "")
            ],
        )

    @views.get("/failed/confirm")
    def failed_confirm(redis: Redis) -> Any:
        act, dead, group = _act(request.args.get("act")), flag(request.args, "dead"), _group(request.args)
        ids = request.args.getlist("job")
        if len(ids) > NEWEST:
            raise ConfigurationError(f"{len(ids)} jobs are chosen: at most {NEWEST}")
        if group is None:
            ids = may_act(redis, act, ids)
        else:
            rights.require(ACTS[act][1], group[0])
            ids = [one["id"] for one in jobs_of_group(redis, *group, dead)[1] if one["exists"]]
        if not ids:
            raise ConfigurationError("no job is chosen: tick some, and press again")
        asked = dict(zip(("queue", "exception", "function"), group or ()))
        fields = {"act": act, "dead": "1" if dead else "", "confirm": str(len(ids)) if act == "delete" else ""}
        if group is not None:
            fields.update(asked)
        else:
            fields["jobs"] = json.dumps(ids)
        return page_of(
            "confirm",
            redis,
            {"fields": {name: value for name, value in fields.items() if value}, "asked": asked},
            act=act,
            group=asked,
            count=len(ids),
            ids=ids[:PAGE],
            dead=dead,
        )

    @views.post("/jobs")
    def jobs_act(redis: Redis) -> Any:
        given = posted("act", "jobs", "queue", "exception", "function", "dead", "confirm")
        act, dead = _act(given.get("act")), flag(given, "dead")
        if "jobs" in given:
            ids, group, words = _ids(given["jobs"]), None, ""
        elif "queue" in given:
            rights.require(ACTS[act][1], given["queue"])
            group = (given["queue"], given.get("exception", ""), given.get("function", ""))
            ids = [one["id"] for one in jobs_of_group(redis, *group, dead)[1] if one["exists"]]
            words = f"exception={group[1]}, function={group[2]}{_DEAD[dead]}"
        else:
            raise ConfigurationError("nothing says which jobs: give jobs, a JSON list of ids, or queue")
        # Also of a group: an entry of its queue may be of a job that is another queue's by now.
        known = may_act(redis, act, ids)
        _check_confirmed(act, known, given)
        by_queue = {group[0]: known} if group else _by_queue(redis, known)
        deeds = [
            Deed(ACTS[act][1], name, None, words or f"of {_some(some)}{_DEAD[dead]}") for name, some in by_queue.items()
        ]
        with noted(redis, rights, *deeds) as under_way:

            def count_done(at: int, number: int) -> None:
                under_way.deeds[at] = deeds[at]._replace(jobs=number)

            report = act_on(redis, act, by_queue, dead, count_done)
        report["gone"] += len(ids) - len(known)
        report.update(under_way.report)
        from_view = page_of_form()
        to: str = ".page"
        where: dict[str, Any] = {}
        if from_view == "job" and act != "delete":
            to, where = ".job", {"id": ids[0]}
        elif from_view in ("job", "failed"):
            to, where = ".failed", {"dead": 1} if dead else {}
        done = report["done"]
        return answer(redis, report, ACTS[act][0], ", ".join(report["queues"]), done, to, **where)


def _by_queue(redis: Redis, ids: Sequence[str]) -> dict[str, list[str]]:
    """Return jobs by their own queues."""
    found: dict[str, list[str]] = {}
    for job_id, origin in zip(ids, origins_of(redis, ids)):
        found.setdefault(origin, []).append(job_id)
    return found


def _some(ids: Sequence[str]) -> str:
    """Name the first of these jobs."""
    return f"{', '.join(ids[:5])}{' …' if len(ids) > 5 else ''}"


def _check_confirmed(act: str, ids: Sequence[str], given: dict[str, str]) -> None:
    """Refuse to delete more jobs than were confirmed. Raises ConfigurationError."""
    if act == "delete" and len(ids) > number(given, "confirm", 0):
        raise ConfigurationError(
            f"this deletes {count(len(ids), 'job')} for ever, and nothing is deleted yet: "
            f"confirm={len(ids)} says that you mean them"
        )


def _group(args: Any) -> tuple[str, str, str] | None:
    """Return the queue, exception and function that an address asks for; either of the latter may be empty."""
    if "exception" not in args:
        return None
    if not args.get("queue"):
        raise ConfigurationError("exception means a group of a queue: give queue, too")
    return args["queue"], args["exception"], args.get("function", "")


def _act(value: str | None) -> str:
    if value not in ACTS:
        raise ConfigurationError(f"act is {printable(value, 50)!r}: give {', '.join(ACTS)}")
    return value


def _ids(value: str) -> list[str]:
    try:
        ids = json.loads(value)
    except (ValueError, RecursionError):
        ids = None
    if not isinstance(ids, list) or not ids or len(ids) > NEWEST or not all(isinstance(one, str) for one in ids):
        raise ConfigurationError(f"jobs is no JSON list of 1 to {NEWEST} ids")
    return list(dict.fromkeys(ids))


def _cut(trace: str) -> str:
    left_out = len(trace) - MAX_TRACEBACK
    half = MAX_TRACEBACK // 2
    return trace if left_out <= 0 else f"{trace[:half]}\n[{left_out} characters left out]\n{trace[-half:]}"
