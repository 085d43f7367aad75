"""What is wrong now, in sentences, the worst first: what an operator who is woken at three reads first."""

from __future__ import annotations

from typing import Any

from ..foreign import MAX_VALUE, printable
from ..store.queues import MAX_QUEUES
from ..store.views import MAX_NAME
from .words import ago, count, number, rate, span

#: Seconds that the head of a queue may wait, and after which a worker is silent, before the page says so.
_WAIT, _SILENT = 600.0, 45.0


def verdict(found: dict[str, Any]) -> list[dict[str, str]]:
    """Return what is wrong with what ``overview`` found: each ``level`` (stop, warn), ``text``, ``at`` (a section)."""
    wrong: list[dict[str, str]] = []

    def add(level: str, at: str, text: str) -> None:
        wrong.append({"level": level, "text": text, "at": at})

    connections, queues = found["connections"], found["queues"]
    held = f"{number(connections['connected'])} of {number(connections['maxclients'])} connections are in use"
    if connections["level"] == "stop":
        add("stop", "connections", f"The server is nearly full: {held}.")
    if any(queue["suspended"] for queue in queues):
        add("stop", "queues", "RQ is suspended: workers begin no jobs until rq resume.")
    unattended = [queue for queue in queues if queue["length"] and not queue["workers"]]
    if unattended:
        most = max(unattended, key=lambda queue: queue["length"])
        others = f", nor {count(len(unattended) - 1, 'other queue')}" if len(unattended) > 1 else ""
        waits = "waits" if most["length"] == 1 else "wait"
        add("stop", "queues", f"No worker serves {_name(most)}, where {count(most['length'], 'job')} {waits}{others}.")
    ended, failing = found["throughput"], found["failures"]
    fails = ended["failed_per_minute"]
    share = fails / max(fails + ended["finished_per_minute"], 1e-9)
    recent = [group for group in failing if group["last"] and found["now"] - group["last"] < 3600]
    if recent or fails:
        of = ""
        if recent:
            most = max(recent, key=lambda group: group["count"])
            what = most["exception"] if most["exception"] != "ghost" else "entries without a job"
            of = f"; most often {printable(what or 'its process ended', MAX_VALUE)}"
            of += f" in {printable(most['function'], MAX_VALUE)}" if most["function"] else ""
            of += f", first {ago(max(1.0, found['now'] - most['first']))}"
            # Older ones were not looked at.
            of += " or earlier" if found["looked_at"] < found["failed"] else ""
        if fails and share >= 0.1:
            add("stop", "failures", f"{share:.0%} of the jobs fail, {rate(fails)} a minute{of}.")
        else:
            lately = ended["failed"] or sum(group["count"] for group in recent)
            add("warn", "failures", f"{count(lately, 'job')} failed in the last hour{of}.")
    stopped = [queue for queue in queues if queue["paused_for"] is not None and queue["length"]]
    if stopped:
        most = max(stopped, key=lambda queue: queue["length"])
        text = f"{_name(most)} has been paused for {span(most['paused_for'])}, and {count(most['length'], 'job')}"
        add("warn", "queues", f"{text} {'waits' if most['length'] == 1 else 'wait'} in it.")
    late = [
        queue
        for queue in queues
        if queue["workers"] and queue["paused_for"] is None and (queue["oldest_age"] or 0) > _WAIT
    ]
    if late:
        most = max(late, key=lambda queue: queue["oldest_age"])
        add("warn", "queues", f"Jobs wait: the first of {_name(most)} for {span(most['oldest_age'])}.")
    overdue = max(queues, key=lambda queue: float(queue["schedule_lag"]), default=None)
    if overdue is not None and overdue["schedule_lag"] > 60:
        late_by = span(overdue["schedule_lag"])
        add("warn", "upcoming", f"Scheduled jobs of {_name(overdue)} are late by {late_by}: no worker moves them.")
    if found["left_out"]:
        add("warn", "queues", f"{sentence_of_left_out(found['left_out'])}.")
    if connections["level"] == "warn":
        add("warn", "connections", f"The server fills up: {held}.")
    if connections["budget"] is not None and connections["budgeted"] > connections["budget"]:
        add(
            "warn",
            "connections",
            f"{connections['budgeted']} connections exceed the budget of {connections['budget']}.",
        )
    if connections["steady_growth"] and connections["trend_per_minute"]:
        left = connections["minutes_left"]
        full = "" if left is None else f", full in about {span(left * 60)}"
        growth = f"Connections grow steadily by {connections['trend_per_minute']:g} a minute{full}"
        add("warn", "connections", f"{growth}: does a process leak them?")
    held = sum(one["worker"]["held"] for one in found["workers"])
    if held:
        add("warn", "workers", f"{count(held, 'worker')} {'was' if held == 1 else 'were'} told to claim nothing.")
    silent = [one for one in found["workers"] if one["age"] > _SILENT]
    if silent:
        add("warn", "workers", f"{count(len(silent), 'worker')} reported nothing for {span(silent[0]['age'])}.")
    return sorted(wrong, key=lambda one: one["level"] != "stop")


def sentence_of_left_out(queues: int) -> str:
    """Say that so many queues are not shown, and why, without a full stop."""
    kept = f"{number(MAX_QUEUES)} are shown, of names of at most {number(MAX_NAME)} characters, as far as asked about"
    return f"{count(queues, 'queue is', 'queues are')} left out: {kept}"


def _name(queue: dict[str, Any]) -> str:
    return f"“{printable(queue['name'], MAX_VALUE)}”"
