"""The page of one queue, and what it does: pause, resume and limit it, requeue and sweep its failed jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis import Redis

from ..errors import ConfigurationError
from ..failed import actions
from ..foreign import printable
from ..monitoring.audit import Deed
from ..monitoring.queues import queues
from ..queue.limits import clear_limit, limit_in_force, make_limit, set_limit
from ..queue.pause import pause, resume
from .notices import answer
from .page import fits_a_form, queue_row
from .parameters import asked_for, flag, number, page_of_form, posted, queue_of
from .rights import BURY, PAUSE, PURGE, REQUEUE, VIEW
from .views import Views, page_of


def add_queues(views: Views) -> None:
    """Add the page and its endpoints."""
    rights = views.rights

    def run(redis: Redis, action: str, given: dict[str, str], act: Callable[..., dict[str, Any]], **how: Any) -> Any:
        """Run an action on failed jobs of a queue, write down which, and return its report."""
        words = ", ".join(f"{key}={value}" for key, value in given.items() if key not in ("queue", "policy", "confirm"))
        how.update(exception=given.get("exception"), exactly=flag(given, "exactly"))
        with views.noted(redis, Deed(action, given["queue"], None, words)) as under_way:
            report = act(redis, given["queue"], **how)
            under_way.done(report["done"])
        return {**report, **under_way.report}

    @views.get("/queue")
    def queue(redis: Redis) -> Any:
        asked = asked_for("name", "act", "did")
        name, act = asked.get("name", ""), asked.get("act", "")
        rights.require(VIEW, name)
        (found,) = queues(redis, name)
        limit = limit_in_force(redis, name)
        values = {
            "queue": queue_row(found),
            "limit": limit and {"text": str(limit.limit), "by_operator": limit.by_operator},
            "act": act,
            "counted": actions.counted(redis, name, act) if act else None,
            "acts": {right for right in (REQUEUE, BURY, PAUSE) if fits_a_form(name) and rights.may(right, name)},
        }
        return page_of("queue", redis, {"name": name}, **values)

    @views.post("/queues/pause")
    def queue_pause(redis: Redis) -> Any:
        given = posted("queue", "act")
        name, act = queue_of(given), given.get("act", "pause")
        if act not in ("pause", "resume"):
            raise ConfigurationError(f"act is {printable(act, 50)!r}: give pause or resume")
        rights.require(PAUSE, name)
        with views.noted(redis, Deed(act, name)) as under_way:
            changed = (pause if act == "pause" else resume)(redis, name)
            if not changed:
                under_way.deeds.clear()
        report = {"queue": name, "paused": act == "pause", "changed": changed, **under_way.report}
        return _answer(redis, report, f"{act}d", name)

    @views.post("/queues/limit")
    def queue_limit(redis: Redis) -> Any:
        # The page's form sends fields that were left empty, too.
        given = posted("queue", "rate", "max_running", "clear", may_be_empty=("rate", "max_running"))
        name, clear = queue_of(given), flag(given, "clear")
        rights.require(PAUSE, name)
        most = number(given, "max_running", 0) if "max_running" in given else None
        if clear and (most is not None or "rate" in given):
            raise ConfigurationError("clear=1 excludes rate and max_running")
        limit = None if clear else make_limit(given.get("rate"), most)
        with views.noted(redis, Deed("limit", name, None, str(limit or "cleared"))) as under_way:
            if limit is None:
                clear_limit(redis, name)
            else:
                set_limit(redis, name, limit)
        now = limit_in_force(redis, name)
        report = {"queue": name, "limit": now and str(now.limit), "by_operator": now and now.by_operator}
        report.update(under_way.report)
        return _answer(redis, report, "limited" if limit else "unlimited", name)

    @views.post("/queues/requeue")
    def queue_requeue(redis: Redis) -> Any:
        given = posted("queue", "exception", "exactly", "confirm")
        name = queue_of(given)
        rights.require(REQUEUE, name)
        report = run(redis, REQUEUE, given, actions.requeue, limit=number(given, "confirm", actions.MOST))
        return _answer(redis, report, "requeued", name)

    @views.post("/queues/sweep")
    def queue_sweep(redis: Redis) -> Any:
        given = posted("queue", "policy", "exception", "exactly", "older_than", "all", "confirm")
        name, policy = queue_of(given), given.get("policy", "ghosts")
        rights.require(PURGE if policy == "purge" else BURY, name)
        did = {"bury": "buried", "purge": "purged"}.get(policy, "swept")
        how: dict[str, Any] = {
            "policy": policy,
            "older_than": given.get("older_than"),
            "everything": flag(given, "all"),
        }
        how["confirmed"] = number(given, "confirm", 0) if "confirm" in given else None
        action = "sweep" if did == "swept" else policy
        return _answer(redis, run(redis, action, given, actions.sweep, **how), did, name)


def _answer(redis: Redis, report: dict[str, Any], did: str, name: str) -> Any:
    """Answer a POST; a button's page is the one that it stands on."""
    done = report.get("done", 1)
    more = report.get("unfinished", False) or done >= actions.MOST
    to, where = (".queue", {"name": name}) if page_of_form() == "queue" else (".page", {})
    return answer(redis, report, did, name, done, to, more, **where)
