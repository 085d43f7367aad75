"""The page of workers and of the jobs that they run: stop a job, have a worker claim nothing more, shut it down."""

from __future__ import annotations

from typing import Any

from flask import request
from redis import Redis

from ..errors import ConfigurationError
from ..failed.listing import origins_of
from ..foreign import printable
from ..monitoring.audit import Deed
from ..monitoring.workers import MOST, claims_of, hold, running, shut_down, stop_job, workers
from .notices import answer
from .page import fits_a_form
from .parameters import asked_for, posted
from .rights import STOP
from .views import Views, page_of

#: Jobs on the page.
SHOWN = 200


def add_workers(views: Views) -> None:
    """Add the page and its endpoint."""
    rights = views.rights

    @views.get("/workers")
    def workers_page(redis: Redis) -> Any:
        asked_for("stop", "act", "did")
        found, jobs = workers(redis), running(redis)
        for worker in found:
            may_stop = bool(worker["queues"]) and all(rights.may(STOP, queue) for queue in worker["queues"])
            worker["may_stop"] = may_stop and fits_a_form(worker["names"][0])
        for job in jobs[:SHOWN]:
            job["may_stop"] = bool(job["worker"]) and fits_a_form(job["id"]) and rights.may(STOP, job["queue"])
        asked, act = request.args.get("stop", ""), request.args.get("act", "shutdown")
        more = max(0, len(jobs) - SHOWN)
        return page_of("workers", redis, workers=found, jobs=jobs[:SHOWN], more=more, asked=asked, act=act, most=MOST)

    @views.post("/workers/stop")
    def workers_stop(redis: Redis) -> Any:
        given = posted("job", "worker", "act")
        act = given.get("act", "shutdown")
        if ("job" in given) == ("worker" in given) or ("job" in given and "act" in given):
            raise ConfigurationError("give either job, which is stopped, or worker, which is shut down, and act")
        if act not in ("shutdown", "hold", "release"):
            raise ConfigurationError(f"act is {printable(act, 50)!r}: give shutdown, hold or release")
        if "job" in given:
            claims = [one for one in claims_of(redis, given["job"]) if one["worker"] and one["queue"]]
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
            deed = Deed(act, "", None, f"worker {given['worker']}")
            if act != "shutdown" and found[0]["slots"] is None:
                raise ConfigurationError("a stock worker claims until it is shut down: pause knows none, either")
        for queue in queues:
            rights.require(STOP, queue)
        with views.noted(redis, *(deed._replace(queue=queue) for queue in queues)) as under_way:
            for one in claims:
                stop_job(redis, one["worker"], one["id"], queues)
            if not claims and act == "shutdown":
                shut_down(redis, given["worker"], queues)
            elif not claims:
                hold(redis, given["worker"], act == "hold", queues)
        report = {**given, "queues": queues, **under_way.report}
        return answer(redis, report, deed.action, deed.what, 1, ".workers_page")
