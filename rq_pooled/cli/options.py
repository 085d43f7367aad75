"""Options of commands: those that several take, and those of ``worker``, made from the settings and RQ's options."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import click
from redis import Redis
from rq.cli.workers import worker as rq_worker

from ..config.settings import Settings
from ..durations import parse_duration
from ..pool.registry import get_connection


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--url`` (as ``url``) and ``--json`` (as ``as_json``), written the same everywhere."""
    command = click.option("--json", "as_json", is_flag=True, help="Print data as JSON.")(command)
    text = "The server; else RQ_POOLED_URL, RQ_REDIS_URL or REDIS_URL. A password belongs there, not here."
    return click.option("-u", "--url", metavar="TEXT", help=text)(command)


def open_server(url: str | None) -> Redis:
    """Return a client of the server that ``--url`` or the environment names; nothing connects yet.

    Raises:
        ConfigurationError: the URL or a setting cannot be used.
    """
    # The command itself says in one line what goes wrong; the pool's line in the log would be a second one.
    logging.getLogger("rq_pooled").addHandler(logging.NullHandler())
    return get_connection(Settings.load({"url": url}), "cli")


def setting_options() -> list[click.Option]:
    """Return one option per setting but for keys, which everybody on the host would see.

    Values stay text here: Settings alone knows what is allowed.
    """
    options = []
    for setting in Settings.rows():
        if setting.secret and setting.name != "url":
            continue
        flags = ["--" + setting.name.replace("_", "-"), *(["-u"] if setting.name == "url" else []), setting.name]
        text = f"{setting.description}  [{shown(setting.default)}]"
        metavar = {"s": "SECONDS", "": "TEXT"}.get(setting.unit, setting.unit.upper())
        options.append(
            click.Option(
                flags, metavar="NUMBER" if setting.unit == "" and setting.type is float else metavar, help=text
            )
        )
    return options


def rq_options() -> list[click.Parameter]:
    """Return what ``rq worker`` takes, with our worker class as the default, less what is a setting of ours."""
    ours = {option.name for option in setting_options()}
    parameters = [copy.copy(parameter) for parameter in rq_worker.params if parameter.name not in ours]
    for parameter in parameters:
        if parameter.name == "worker_class":
            parameter.default = "rq_pooled.Worker"
    return parameters


#: The settings in the order in which the help of ``worker`` shows them, by subject.
GROUPS = {
    "Settings that matter first": ("url", "concurrency", "shutdown_timeout", "preload", "app"),
    "Horses and jobs": ("max_jobs_per_horse", "max_horse_memory", "kill_grace", "jobs_share", "allowed"),
    "Leases and recovery": (
        *("heartbeat_interval", "heartbeat_ttl", "abandon_after", "stalled_interval", "max_stalls"),
        *("reconnect_base", "reconnect_cap", "reconnect_attempts"),
    ),
    "Guard and budget of the server's connections": (
        *("guard_warn", "guard_stop", "guard_interval", "guard_wait", "guard_maxclients", "budget", "budget_name"),
    ),
    "Connections and pools": (
        *("max_connections", "pool_timeout", "enqueue_deadline", "breaker_delay", "socket_timeout"),
        *("socket_connect_timeout", "block", "keepalive_idle", "keepalive_interval", "keepalive_count"),
        *("health_check_interval", "max_idle", "max_lifetime", "leak_warn"),
    ),
    "Sweeps of failed jobs": (
        *("sweep_ghosts", "sweep_requeue", "sweep_requeue_times", "sweep_requeue_delay", "sweep_requeue_rate"),
        *("sweep_bury_after", "sweep_purge_after", "sweep_keep", "sweep_dead_age", "sweep_dead_count"),
    ),
}


class WorkerCommand(click.Command):
    """A command whose help lists first what matters first, then the other settings by subject, then RQ's options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a list of options for each group."""
        # QUEUES is in the first line.
        left = {p.name: p for p in self.get_params(ctx) if isinstance(p, click.Option)}
        ours = {option.name for option in setting_options()}
        groups = [(title, [left.pop(name) for name in names]) for title, names in GROUPS.items()]
        groups.append(("Further settings", [left.pop(name) for name in list(left) if name in ours]))
        groups.append(("Options of rq worker", list(left.values())))
        for title, options in groups:
            records = [record for option in options if (record := option.get_help_record(ctx)) is not None]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def shown(value: Any) -> str:
    """Return a setting's value as people write it."""
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def as_seconds(_context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Return the seconds of an option that takes a duration. Raises ConfigurationError."""
    return None if value is None else parse_duration(value, f"--{(parameter.name or '').replace('_', '-')}")


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say which failed jobs are meant."""
    for option in (
        click.option("--limit", type=click.IntRange(1), help="Jobs at most in each queue, the oldest first."),
        click.option("--older-than", callback=as_seconds, metavar="AGE", help="That failed so long ago: 45s, 10m, 2d."),
        click.option("--function", "functions", multiple=True, metavar="NAME", help="Of this function; * and ? count."),
        click.option("--exception", "exceptions", multiple=True, metavar="NAME", help="That failed with this."),
        click.option("--queue", "-q", "queues", multiple=True, metavar="NAME", help="Of this queue; else of all."),
    ):
        command = option(command)
    return command


dry_run_option = click.option("--dry-run", is_flag=True, help="Change nothing, and tell what would be done.")
dead_option = click.option("--dead", is_flag=True, help="Dead letters instead of the failed registry.")
