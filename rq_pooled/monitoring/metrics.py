"""Health, statistics and queues as Prometheus text; needs ``prometheus_client`` (the extra ``metrics``).

Each scrape reads everything from the server, so that one process can be scraped for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from redis import Redis

from ..config.settings import Settings
from ..connection.away import LOST
from ..foreign import label, replies_of, whole_number
from ..pool.registry import get_connection
from ..store.keys import budget_keys
from ..store.queues import all_shown, left_out
from .guard import connections
from .health import health
from .processes import MAX_PROCESSES, processes, server_time
from .queues import queues
from .throughput import throughput

#: For the answer to a scrape.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_COUNTERS = {
    "claims": "jobs that began",
    "finished": "outcomes recorded: succeeded",
    "failed": "outcomes recorded: failed for good, or stopped",
    "retried": "outcomes recorded: to be run again",
    "lost_claims": "outcomes dropped: the job was cancelled, deleted or handed on",
    "stale_ids": "ids in queues without a job",
    "stalls": "jobs of dead or silent workers that were found",
    "reconnects": "times that the server was lost and found again",
    "outage_seconds": "time without the server",
    "horses_replaced": "horses forked in place of others",
    "refused": "jobs that were not loaded: not signed as they should be, or not allowed",
    "unsigned": "outcomes of jobs that ran without a signature",
}
_QUEUE_STATES = (
    *("length", "started", "scheduled", "deferred", "failed", "finished", "canceled", "dead", "workers"),
    *("ready", "rate_limited"),
)
_POOL_GAUGES = ("max", "created", "available", "in_use", "waiting")


def metrics(
    connection: Redis | None = None, settings: Settings | None = None, timeout: float = 2.0, clients: bool = True
) -> str:
    """Return everything as Prometheus text; while the server is away only ``rq_pooled_up 0``, and no error.

    Blocks for at most ``timeout`` seconds to find out that the server is away, then for about ten round trips.

    Args:
        connection: a client of the server; that of this process's pool if not given.
        settings: from the environment if not given.
        timeout: seconds.
        clients: also CLIENT LIST, for connections by application and role; it holds a server with 4 000 clients for
            24 ms at each scrape.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(connection, settings, timeout, clients))
    return generate_latest(registry).decode()


class _Collector:
    """Asks once for each scrape."""

    def __init__(self, connection: Redis | None, settings: Settings | None, timeout: float, clients: bool) -> None:
        self._connection = connection
        self._settings = settings
        self._timeout = timeout
        self._clients = clients

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        for family in self._families():
            for sample in family.samples:
                # The one place where what others named is made fit to be shown.
                sample.labels.update({name: label(value) for name, value in sample.labels.items()})
            yield family

    def _families(self) -> Iterator[Any]:
        report = health(self._timeout, self._settings, self._connection)
        away = report["status"] == "away"
        if not away:
            try:
                yield from self._server(report)
                unreadable: list[str] = []
                yield from _processes(processes(self._connection, unreadable))
                client = self._connection or get_connection()
                ended = throughput(client)
                # They are of all queues together: 0 would be wrong where some may not be shown.
                for name in ("finished", "failed") if all_shown(client.execute_command) else ():
                    value = ended[f"{name}_per_minute"]
                    yield GaugeMetricFamily(f"rq_pooled_{name}_per_minute", "jobs that ended, lately", value=value)
                found = queues(self._connection)
                yield from _queues(found)
                lost = GaugeMetricFamily("rq_pooled_unreadable", "entries of another type or shape", labels=["kind"])
                lost.add_metric(["process"], len(unreadable))
                lost.add_metric(["queue"], sum(len(queue["unreadable"]) for queue in found))
                lost.add_metric(["left_out"], left_out(client.execute_command))
                yield lost
                yield from _budget(client, self._settings)
            except LOST:
                away = True
        yield GaugeMetricFamily("rq_pooled_up", "1 while the server answers", value=float(not away))

    def _server(self, report: dict[str, Any]) -> Iterator[Any]:
        for name in ("connected", "maxclients"):
            if report[name] is not None:
                yield GaugeMetricFamily(f"rq_pooled_server_{name}", f"the server's clients: {name}", value=report[name])
        yield GaugeMetricFamily("rq_pooled_ping_seconds", "time of one PING", value=report["latency"])
        if not self._clients:
            return
        found = connections(self._connection, self._settings)
        gauge = GaugeMetricFamily("rq_pooled_connections", "our connections", labels=["app", "role"])
        sums: dict[tuple[str, str], int] = {}
        for process in found["processes"]:
            for role, count in process["roles"].items():
                sums[process["app"], role] = sums.get((process["app"], role), 0) + count
        for (app, role), count in sorted(sums.items()):
            gauge.add_metric([app, role], count)
        yield gauge
        others = sum(other["total"] for other in found["others"])
        yield GaugeMetricFamily("rq_pooled_other_connections", "connections of others", value=others)
        yield GaugeMetricFamily(
            "rq_pooled_orphans", "connections of processes that are gone", value=len(found["orphans"])
        )
        if found["trend_per_minute"] is not None:
            yield GaugeMetricFamily(
                "rq_pooled_connections_per_minute", "growth over ten minutes", value=found["trend_per_minute"]
            )


def _processes(found: list[dict[str, Any]]) -> Iterator[Any]:
    labels = ["app", "host", "pid", "worker"]
    counters = {name: CounterMetricFamily(f"rq_pooled_{name}", text, labels=labels) for name, text in _COUNTERS.items()}
    histograms = {
        "queue_wait": HistogramMetricFamily("rq_pooled_queue_wait_seconds", "enqueued until begun", labels=labels),
        "run_time": HistogramMetricFamily("rq_pooled_run_seconds", "given to a horse until its outcome", labels=labels),
    }
    slots = GaugeMetricFamily("rq_pooled_slots", "jobs that workers can run at once", labels=labels)
    busy = GaugeMetricFamily("rq_pooled_busy_slots", "jobs that workers run now", labels=labels)
    age = GaugeMetricFamily("rq_pooled_heartbeat_age_seconds", "since it published", labels=[*labels, "kind"])
    pools = {
        name: GaugeMetricFamily(f"rq_pooled_pool_{name}", f"pools: {name}", labels=["app", "host", "pid", "role"])
        for name in _POOL_GAUGES
    }
    timeouts = CounterMetricFamily("rq_pooled_pool_timeouts", "PoolExhausted", labels=["app", "host", "pid", "role"])
    memory = GaugeMetricFamily(
        "rq_pooled_worker_memory_bytes", "RSS of a worker's parent, and of its horses together", labels=[*labels, "of"]
    )
    held = GaugeMetricFamily("rq_pooled_worker_connections", "of a worker, by role", labels=[*labels, "role"])
    for one in found:
        worker = one["worker"]
        place = [one["app"], one["host"], str(one["pid"])]
        who = [*place, worker["name"] if worker else ""]
        age.add_metric([*who, one["kind"]], one["age"])
        for pool in one["pools"]:
            for name, gauge in pools.items():
                gauge.add_metric([*place, pool["role"]], pool[name])
            timeouts.add_metric([*place, pool["role"]], pool["timeouts"])
        if worker is None:
            continue
        for role, count in one["connections"].items():
            held.add_metric([*who, role], count)
        if worker["memory"]["parent"] is not None:
            memory.add_metric([*who, "parent"], worker["memory"]["parent"] * 2**20)
        if worker["memory"]["horses"]:
            memory.add_metric([*who, "horses"], sum(worker["memory"]["horses"]) * 2**20)
        slots.add_metric(who, worker["concurrency"])
        busy.add_metric(who, worker["busy"])
        for name, counter in counters.items():
            counter.add_metric(who, worker["counters"][name])
        for name, family in histograms.items():
            one_of = worker[name]
            family.add_metric(who, [(le, n) for le, n in one_of["buckets"].items()], one_of["sum"])
    yield from (age, slots, busy, memory, held, *counters.values(), *histograms.values(), *pools.values(), timeouts)


def _budget(client: Redis, settings: Settings | None) -> Iterator[Any]:
    """Yield how many places of the BUDGET there are, and how many are held; nothing without one."""
    settings = settings or Settings.load()
    if settings.budget is not None:
        leases, places, *_ = budget_keys(settings.budget_name or "")
        pipeline: Any = client.pipeline(transaction=False)
        # Those whose leases end first: who lives renews its own.
        pipeline.zrangebyscore(leases, server_time(client), "+inf", start=0, num=MAX_PROCESSES)
        alive = replies_of(pipeline)[0]
        pipeline.hmget(places, alive or ("",))
        held = sum(map(whole_number, replies_of(pipeline)[0] or ()))
        yield GaugeMetricFamily("rq_pooled_budget", "places that BUDGET has", value=settings.budget)
        yield GaugeMetricFamily("rq_pooled_budget_held", "places that processes hold", value=held)


def _queues(found: list[dict[str, Any]]) -> Iterator[Any]:
    jobs = GaugeMetricFamily("rq_pooled_queue", "jobs (and workers) of a queue by state", labels=["queue", "state"])
    oldest = GaugeMetricFamily("rq_pooled_queue_oldest_seconds", "how long the head has been queued", labels=["queue"])
    lag = GaugeMetricFamily("rq_pooled_schedule_lag_seconds", "since the first scheduled job is due", labels=["queue"])
    paused = GaugeMetricFamily("rq_pooled_queue_paused", "1 while the queue is paused", labels=["queue"])
    for queue in found:
        name = queue["name"]
        paused.add_metric([name], float(queue["paused_for"] is not None))
        lag.add_metric([name], queue["schedule_lag"])
        for state in _QUEUE_STATES:
            jobs.add_metric([name, "queued" if state == "length" else state], queue[state])
        oldest.add_metric([name], queue["oldest_age"] or 0.0)
    yield from (jobs, oldest, lag, paused)
