"""``rq-pooled stats``: what workers, web processes and queues are doing."""

from __future__ import annotations

import click

from ..durations import show_duration
from ..foreign import MAX_VALUE, printable
from ..monitoring.processes import processes
from ..monitoring.queues import queues
from ..monitoring.throughput import throughput
from ..monitoring.verdict import sentence_of_left_out
from ..monitoring.words import some
from ..store.counters import NAMES, quantile
from ..store.queues import left_out
from .options import open_server, server_options
from .printing import say, say_json
from .tables import OLD, process_rows, queue_rows, seconds, table

_COUNTED = [name for name in NAMES if name != "outage_seconds"]


@click.command()
@server_options
def stats(url: str | None, as_json: bool) -> None:
    """Show what workers, web processes and queues are doing.

    Each process publishes its statistics at HEARTBEAT_INTERVAL; those of a web process are as old as its last
    request.
    """
    client = open_server(url)
    unreadable: list[str] = []
    found, waiting, ended = processes(client, unreadable), queues(client), throughput(client)
    if as_json:
        say_json({"processes": found, "queues": waiting, "throughput": ended, "unreadable": unreadable})
        return
    if unreadable:
        say(f"rq-pooled: statistics that are not read: {some(unreadable)}", err=True)
    if hidden := left_out(client.execute_command):
        say(f"rq-pooled: {sentence_of_left_out(hidden)}", err=True)
    for queue in waiting:
        if queue["unreadable"]:
            states = ", ".join(queue["unreadable"])
            say(
                f"rq-pooled: {printable(queue['name'], MAX_VALUE)}: counted as empty, of another type: {states}",
                err=True,
            )
    if not found:
        say("No process has published statistics: no worker runs, and no web process lately.")
    else:
        say(*table(process_rows(found)))
        if any(one["age"] > OLD for one in found):
            say(f"* older than {OLD:g} s: what ended since is counted with the next heartbeat")
    workers = [one["worker"] for one in found if one["worker"]]
    if workers:
        sums = {name: sum(worker["counters"][name] for worker in workers) for name in _COUNTED}
        away = sum(worker["counters"]["outage_seconds"] for worker in workers)
        say("", "since their start: " + ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in sums.items()))
        say(f"without the server: {show_duration(round(away, 1))}")
        for worker in workers:
            wait, run = worker["queue_wait"], worker["run_time"]
            at_most = [seconds(quantile(one, share)) for one in (wait, run) for share in (0.5, 0.95)]
            say(
                f"{worker['name']}: half of the jobs waited at most {at_most[0]}, 95 % {at_most[1]}; ran {at_most[2]}, "
                f"{at_most[3]}"
            )
    if ended["since"] is not None:
        say("", f"ended in the last hour: {ended['finished']} finished, {ended['failed']} failed")
        say(f"a minute, lately: {ended['finished_per_minute']:g} finished, {ended['failed_per_minute']:g} failed")
    if waiting:
        say("", *table(queue_rows(waiting)))
