"""The settings as options of a command and as docs/settings.md: made from ``Settings.describe()`` and RQ's options."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import click
from redis import Redis
from rq.cli.workers import worker as rq_worker

from ..config.settings import Settings
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
    # What goes wrong ends in one line of the command; the pool's own line in the log would be a second one.
    logging.getLogger("rq_pooled").addHandler(logging.NullHandler())
    return get_connection(Settings.load({"url": url}), "cli")


def setting_options() -> list[click.Option]:
    """Return one option per setting. Values stay text here: Settings alone knows what is allowed."""
    options = []
    for setting in Settings.describe():
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


class WorkerCommand(click.Command):
    """A command whose help keeps our options and RQ's apart: each list is long enough."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write two lists of options, ours first."""
        ours = {option.name for option in setting_options()}
        for title, wanted in (("Settings", True), ("Options of rq worker", False)):
            listed = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]  # QUEUES is in the first line
            records = [p.get_help_record(ctx) for p in listed if (p.name in ours) is wanted]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])


def settings_as_markdown() -> str:
    """Return docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "<!-- Written by `make docs` from rq_pooled.config.Settings: change it there. -->",
        "",
        "Each is read, first found, from: the command line of `rq-pooled worker` (`--pool-timeout 5`) or a keyword",
        "argument (`Worker(..., pool_timeout=5)`), the environment, RQ's settings module (`-c`, with or without the",
        "prefix). An empty variable counts as not set. `rq-pooled settings` shows what the environment gives; it and",
        "the log of a worker name variables that are nearly a setting. `rq worker` takes the server from its own",
        "`--url` or `RQ_REDIS_URL`. Where no URL is set, `REDIS_HOST` names the server, with `REDIS_PORT`, `REDIS_DB`,",
        "`REDIS_PASSWORD` and `REDIS_SSL`, as in RQ.",
        "",
        "| environment | default | unit | what it is |",
        "|---|---|---|---|",
    ]
    for setting in Settings.describe():
        also = f" (also read: {', '.join(f'`{name}`' for name in setting.env[1:])})" if setting.env[1:] else ""
        allowed = f"; {setting.allowed}" if setting.allowed else ""
        lines.append(
            f"| `{setting.env[0]}` | {shown(setting.default)} | {setting.unit} | {setting.description}{allowed}{also} |"
        )
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """Return a setting's value as people write it."""
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:.12g}" if isinstance(value, float) else str(value)
