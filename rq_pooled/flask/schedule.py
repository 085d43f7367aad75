"""The page of what is to come, and its button that cancels one."""

from __future__ import annotations

from typing import Any

from flask import request
from redis import Redis

from ..errors import ConfigurationError
from ..monitoring.schedules import cancel, deed_of_cancel, scheduled_in, schedules
from .notices import answer
from .page import fits_a_form
from .parameters import asked_for, posted
from .rights import PURGE
from .views import Views, page_of

#: Entries on the page.
SHOWN = 100


def add_schedule(views: Views) -> None:
    """Add the page and its endpoint."""
    rights = views.rights

    @views.get("/schedule")
    def schedule(redis: Redis) -> Any:
        asked_for("cancel", "did")
        entries = schedules(redis, SHOWN)
        for one in entries:
            one["may_cancel"] = bool(one["id"]) and fits_a_form(one["id"]) and rights.may(PURGE, one["queue"])
        return page_of("schedule", redis, entries=entries, most=SHOWN, asked=request.args.get("cancel", ""))

    @views.post("/schedule/cancel")
    def schedule_cancel(redis: Redis) -> Any:
        job_id = posted("job").get("job", "")
        queue = scheduled_in(redis, job_id)
        if queue is None or not rights.may("view", queue):
            raise ConfigurationError("this job is not scheduled, or not any more")
        rights.require(PURGE, queue)
        with views.noted(redis, deed_of_cancel(job_id, queue)) as under_way:
            cancel(redis, job_id, queue)
            under_way.done(1)
        report = {"job": job_id, "queue": queue, **under_way.report}
        return answer(redis, report, "cancelled", queue, 1, ".schedule")
