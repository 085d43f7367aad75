"""The page of workers and of the jobs that they run, with its buttons: stop a job, shut a worker down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, render_template, request
from redis import Redis

from ..deadline import within
from ..errors import ConfigurationError
from ..failed.listing import origins_of
from ..foreign import shown
from ..monitoring.audit import Deed
from ..monitoring.processes import server_time
from ..monitoring.workers import running, shut_down, stop_job, workers
from .notices import answer, told
from .page import fits_a_form
from .parameters import asked_for, posted
from .rights import STOP, Rights
from .trail import noted
from .words import megabytes, moment

#: Jobs on the page, and seconds within which a request is answered.
SHOWN, DEADLINE = 200, 4.0


def add_workers(blueprint: Blueprint, client: Callable[[], Redis], rights: Rights) -> None:
    """Add the page and its endpoint to the blueprint."""

    def may_stop(worker: dict[str, Any]) -> bool:
        return bool(worker["queues"]) and all(rights.may(STOP, queue) for queue in worker["queues"])

    @blueprint.get("/workers")
    def workers_page() -> Any:
        asked_for("stop", "did")
        with within(DEADLINE, "the deadline of a page"):
            redis = client()
            now, message = server_time(redis), told(redis)
            found, jobs = workers(redis), running(redis)
        rows = [
            {
                **one,
                "up": moment(one["since"], now),
                "reported": moment(one["seen"], now),
                "memory": megabytes(one["memory"]),
                "may_stop": fits_a_form(one["names"][0]) and may_stop(one),
            }
            for one in found
        ]
        listed = [
            {
                **one,
                "began": moment(one["since"], now),
                "may_stop": bool(one["worker"]) and fits_a_form(one["id"]) and rights.may(STOP, one["queue"]),
            }
            for one in jobs[:SHOWN]
        ]
        return render_template(
            "rq_pooled/workers.html",
            workers=shown(rows),
            jobs=shown(listed),
            more=max(0, len(jobs) - SHOWN),
            message=shown(message),
            asked=shown(request.args.get("stop", "")),
        )

    @blueprint.post("/workers/stop")
    def workers_stop() -> Any:
        given = posted("job", "worker")
        if len(given) != 1:
            raise ConfigurationError("give either job, which is stopped, or worker, which is shut down")
        with within(DEADLINE, "the deadline of a page"):
            redis = client()
            if "job" in given:
                claims = [one for one in running(redis) if one["id"] == given["job"] and one["worker"]]
                if not claims:
                    raise ConfigurationError("this job does not run, or not any more")
                # Redis' word alone does not say that the job is this queue's.
                said = [*(one["queue"] for one in claims), *origins_of(redis, [given["job"]])]
                queues = [name for name in dict.fromkeys(said) if name]
                deed = Deed("stop", "", None, f"of {given['job']}")
            else:
                found = [one for one in workers(redis) if given["worker"] in one["names"]]
                if not found or not found[0]["queues"]:
                    raise ConfigurationError("there is no such worker, or not any more")
                claims, queues = [], found[0]["queues"]
                deed = Deed("shutdown", "", None, f"worker {given['worker']}")
            for queue in queues:
                rights.require(STOP, queue)
            with noted(redis, rights, *(deed._replace(queue=queue) for queue in queues)) as under_way:
                for one in claims:
                    stop_job(redis, one["worker"], one["id"], queues)
                if not claims:
                    shut_down(redis, given["worker"], queues)
            report = {**given, "queues": queues, **under_way.report}
            return answer(redis, report, deed.action, deed.what, 1, ".workers_page")
