"""The page of what is to come, and its button that cancels one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, render_template, request
from redis import Redis

from ..deadline import within
from ..errors import ConfigurationError
from ..foreign import shown
from ..monitoring.audit import Deed
from ..monitoring.processes import server_time
from ..monitoring.schedules import cancel, scheduled_in, schedules
from .notices import answer, told
from .page import fits_a_form
from .parameters import asked_for, posted
from .rights import PURGE, Rights
from .trail import noted
from .words import moment, span

#: Entries on the page, and seconds within which a request is answered.
SHOWN, DEADLINE = 100, 4.0


def add_schedule(blueprint: Blueprint, client: Callable[[], Redis], rights: Rights) -> None:
    """Add the page and its endpoint to the blueprint."""

    @blueprint.get("/schedule")
    def schedule() -> Any:
        asked_for("cancel", "did")
        with within(DEADLINE, "the deadline of a page"):
            redis = client()
            now, message = server_time(redis), told(redis)
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
        return render_template(
            "rq_pooled/schedule.html",
            entries=shown(rows),
            most=SHOWN,
            message=shown(message),
            asked=shown(request.args.get("cancel", "")),
        )

    @blueprint.post("/schedule/cancel")
    def schedule_cancel() -> Any:
        job_id = posted("job").get("job", "")
        with within(DEADLINE, "the deadline of a page"):
            redis = client()
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
