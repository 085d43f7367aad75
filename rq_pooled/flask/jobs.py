"""The pages on failed jobs and dead letters: a list, one job with its tries, and what is done to some of them.

Each page has an address, an action answers with a redirect, and what destroys is confirmed on a page of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

from flask import request, url_for
from redis import Redis

from ..errors import ConfigurationError
from ..failed.actions import act_on
from ..failed.groups import NEWEST, jobs_of_group
from ..failed.history import history, no_job
from ..failed.listing import failed_jobs, origins_of
from ..foreign import middle_left_out, printable, seconds_of
from ..monitoring.audit import Deed
from ..monitoring.words import count, some
from ..store.queues import all_shown
from .notices import answer
from .page import fits_a_form
from .parameters import asked_for, flag, list_address, number, page_of_form, posted
from .rights import BURY, PURGE, REQUEUE, VIEW
from .views import Views, page_of

#: Jobs on one page of the list, and characters of a traceback that are shown.
PAGE, MAX_TRACEBACK = 50, 40_000
#: What can be done to jobs -> what the page that follows says was done, and the right that it needs.
ACTS = {"requeue": ("requeued", REQUEUE), "bury": ("buried", BURY), "delete": ("purged", PURGE)}
#: What makes a group of failed jobs.
_GROUP = ("queue", "exception", "function")


def add_job_pages(views: Views) -> None:
    """Add the pages."""
    rights = views.rights

    def acts(queues: Iterable[str], dead: bool) -> list[str]:
        """Return what the request may do to failed jobs of one of these queues."""
        allowed = {right for _, right in ACTS.values() if any(rights.may(right, name) for name in queues)}
        return [act for act, (_, right) in ACTS.items() if right in allowed and not (dead and act == "bury")]

    def origins(redis: Redis, act: str, ids: list[str]) -> dict[str, str]:
        """Return the queues of those of these jobs that the request may see; 403 if it may not do this to one."""
        found = {one: name for one, name in zip(ids, origins_of(redis, ids)) if name and rights.allows(VIEW, name)}
        for name in found.values():
            rights.require(ACTS[act][1], name)
        return found

    def of_group(redis: Redis, act: str, group: dict[str, str], dead: bool) -> list[str]:
        """Return the jobs of a group; 403 if the request may not do this to them."""
        rights.require(ACTS[act][1], group["queue"])
        return [one["id"] for one in jobs_of_group(redis, **group, dead=dead)[1] if one["exists"]]

    @views.get("/failed")
    def failed(redis: Redis) -> Any:
        asked_for("queue", "exception", "function", "dead", "offset", "did")
        dead, offset, group = flag(request.args, "dead"), number(request.args, "offset", 0), _group(request.args)
        queue = request.args.get("queue") or None
        if queue is not None:
            rights.require(VIEW, queue)
        if group:
            looked_at, found = jobs_of_group(redis, **group, dead=dead)
            total, jobs = len(found), found[offset : offset + PAGE]
        else:
            listed = failed_jobs(queue, offset=offset, limit=PAGE, connection=redis, dead=dead)
            total, jobs, looked_at = listed["total"], listed["jobs"], None
        for job in jobs:
            job["has_link"] = job["exists"] and fits_a_form(job["id"])
        asked = {**({"queue": queue} if queue else {}), **group, **({"dead": "1"} if dead else {})}
        raw = {"asked": asked, "address": urlencode({**asked, "offset": offset})}
        values = {"jobs": jobs, "total": total, "looked_at": looked_at, "group": group, "queue": queue, "dead": dead}
        values["acts"] = acts([queue] if queue else {job["queue"] for job in jobs}, dead)
        return page_of("jobs", redis, raw, offset=offset, most=PAGE, **values)

    @views.get("/job")
    def job(redis: Redis) -> Any:
        job_id = asked_for("id", "did").get("id", "")
        # Before it is read, because how long that takes tells of it.
        found = history(redis, job_id) if rights.may(VIEW, origins_of(redis, [job_id])[0]) else None
        if found is None or not rights.may(VIEW, origin := found["origin"] or ""):
            raise no_job(job_id)
        near = [one for one in (found["dependency_id"], *found["dependents"]) if one]
        hidden = {one for one, name in zip(near, origins_of(redis, near)) if not rights.may(VIEW, name)}
        found["dependents"] = [one for one in found["dependents"] if one not in hidden]
        found["dependency_id"] = None if found["dependency_id"] in hidden else found["dependency_id"]
        if hidden or not all_shown(redis.execute_command):  # it counts what may not be seen, too
            found["dependent_count"] = None
        times = {name: seconds_of(found[f"{name.lower()}_at"]) for name in ("Created", "Enqueued", "Started", "Ended")}
        tries = found.pop("tries")[::-1]
        for one in tries:
            one["at"] = seconds_of(one["at"])
            one["lines"] = middle_left_out(one.pop("traceback"), MAX_TRACEBACK).splitlines()
        allowed = acts([origin], found["place"] == "dead") if fits_a_form(found["id"]) else []
        return page_of("job", redis, job=found, times=times, tries=tries, acts=allowed)

    @views.get("/failed/confirm")
    def failed_confirm(redis: Redis) -> Any:
        act, dead, group = _act(request.args.get("act")), flag(request.args, "dead"), _group(request.args)
        ids = request.args.getlist("job")
        if len(ids) > NEWEST:
            raise ConfigurationError(f"{len(ids)} jobs are chosen: at most {NEWEST}")
        ids = of_group(redis, act, group, dead) if group else list(origins(redis, act, ids))
        if not ids:
            raise ConfigurationError("no job is chosen: tick some, and press again")
        fields = {"act": act, "dead": "1" if dead else "", "confirm": str(len(ids)) if act == "delete" else ""}
        fields.update(group or {"jobs": json.dumps(ids)})
        back = list_address() or url_for(".failed", dead=1 if dead else None, **group)
        values: dict[str, Any] = {"act": act, "group": group, "total": len(ids), "ids": ids[:PAGE], "dead": dead}
        return page_of("confirm", redis, {"fields": fields, "back": back}, **values)

    @views.post("/jobs")
    def jobs_act(redis: Redis) -> Any:
        given = posted("act", "jobs", "queue", "exception", "function", "dead", "confirm")
        act, dead, group = _act(given.get("act")), flag(given, "dead"), {}
        if "jobs" in given:
            ids = _ids(given["jobs"])
        elif "queue" in given:
            group = {name: given.get(name, "") for name in _GROUP}
            ids = of_group(redis, act, group, dead)
        else:
            raise ConfigurationError("nothing says which jobs: give jobs, a JSON list of ids, or queue")
        # Also of a group: an entry of its queue may be of a job that is another queue's by now.
        known = origins(redis, act, ids)
        if act == "delete" and len(known) > number(given, "confirm", 0):
            raise ConfigurationError(
                f"this deletes {count(len(known), 'job')} for ever, and nothing is deleted yet: "
                f"confirm={len(known)} says that you mean them"
            )
        by_queue: dict[str, list[str]] = {group["queue"]: []} if group else {}
        for job_id, origin in known.items():
            by_queue.setdefault(group.get("queue", origin), []).append(job_id)
        words = f"exception={group['exception']}, function={group['function']}" if group else ""
        deeds = [
            Deed(ACTS[act][1], name, None, (words or f"of {some(jobs)}") + (", dead letters" if dead else ""))
            for name, jobs in by_queue.items()
        ]
        with views.noted(redis, *deeds) as under_way:

            def count_done(at: int, number: int) -> None:
                under_way.deeds[at] = deeds[at]._replace(jobs=number)

            report = act_on(redis, act, by_queue, dead, count_done)
        report["gone"] += len(ids) - len(known)
        report.update(under_way.report)
        to: str = ".page"
        where: dict[str, Any] = {}
        if page_of_form() == "job" and act != "delete" and ids:
            to, where = ".job", {"id": ids[0]}
        elif page_of_form() in ("job", "failed"):
            to, where = ".failed", {"dead": "1"} if dead else {}
        return answer(redis, report, ACTS[act][0], ", ".join(report["queues"]), report["done"], to, **where)


def _group(args: Any) -> dict[str, Any]:
    """Return the queue, exception and function that an address asks for; either of the latter may be empty."""
    if "exception" not in args:
        return {}
    if not args.get("queue"):
        raise ConfigurationError("exception means a group of a queue: give queue, too")
    return {name: args.get(name, "") for name in _GROUP}


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
