"""The page of what is to come, and its button that cancels one."""

from __future__ import annotations

from typing import Any

from flask import request
from redis import Redis

from ..errors import ConfigurationError
from ..monitoring.audit import Deed
from ..monitoring.processes import server_time
from ..monitoring.schedules import cancel, scheduled_in, schedules
from ..monitoring.words import moment, span
from .notices import answer
from .page import fits_a_form
from .parameters import asked_for, posted
from .rights import PURGE
from .trail import noted
from .views import Views, page_of

#: Entries on the page.
SHOWN = 100


def add_schedule(views: Views) -> None:
    """Add the page and its endpoint."""
    rights = views.rights

    @views.get("/schedule")
    def schedule(redis: Redis) -> Any:
        asked_for("cancel", "did")
        now = server_time(redis)
        entries = schedules(redis, SHOWN)
        rows = [
            {
                **one,
                "due": moment(one["next"], now),
                "in": "–" if one["next"] is None else "now" if one["next"] <= now else f"in {span(one['next'] - now)}",
                "ran": moment(one["last"], now),
                "may_cancel": bool(one["id"]) and fits_a_form(one["id"]) and rights.may(PURGE, one["queue"]),
            }
            for one in entries
        ]
        return page_of("schedule", redis, entries=rows, most=SHOWN, asked=request.args.get("cancel", ""))

    @views.post("/schedule/cancel")
    def schedule_cancel(redis: Redis) -> Any:
        job_id = posted("job").get("job", "")
        queue = scheduled_in(redis, job_id)
        if queue is None or not rights.may("view", queue):
            raise ConfigurationError("this job is not scheduled, or not any more")
        rights.require(PURGE, queue)
        deed = Deed("cancel", queue, None, f"of {job_id}")
        with noted(redis, rights, deed) as under_way:
            cancel(redis, job_id)
            under_way.deeds = [deed._replace(jobs=1)]
        report = {"job": job_id, "queue": queue, **under_way.report}
        return answer(redis, report, "cancelled", queue, 1, ".schedule")
