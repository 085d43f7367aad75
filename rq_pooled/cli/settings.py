"""``rq-pooled settings``: the settings in force, and docs/settings.md."""

from __future__ import annotations

import click

from ..config.secrets import scrub_url
from ..config.settings import Settings
from ..config.typos import misspelt
from .options import shown
from .printing import say, say_json


@click.command(short_help="Show the settings that the environment gives.")
@click.option("--markdown", is_flag=True, help="Print the table of docs/settings.md.")
@click.option("--json", "as_json", is_flag=True, help="Print data as JSON.")
def settings(markdown: bool, as_json: bool) -> None:
    """Show the settings that the environment gives, without passwords."""
    if markdown:
        click.echo(settings_as_markdown(), nl=False)
        return
    current = Settings.load()
    for line in misspelt():
        say(f"rq-pooled: {line}", err=True)
    rows = []
    for setting in Settings.rows():
        value = getattr(current, setting.name)
        value = scrub_url(value) if setting.name == "url" else "***" if setting.secret and value else value
        rows.append((setting, value))
    if as_json:
        known = ("default", "unit", "description")
        say_json({one.env[0]: {"value": value, **{key: getattr(one, key) for key in known}} for one, value in rows})
    for setting, value in rows if not as_json else ():
        words = shown(value)
        say(f"{setting.env[0]:<34} {words}")


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
        "the log of a worker name variables that are nearly a setting. `rq worker` takes the server only from its",
        "own `--url` or `RQ_REDIS_URL`. Where no URL is set, `REDIS_HOST` names the server, with `REDIS_PORT`,",
        "`REDIS_DB`, `REDIS_PASSWORD` and `REDIS_SSL`, as in RQ. Seconds may be written as `1m30s` or `2d`.",
        "",
        "| environment | default | unit | what it is |",
        "|---|---|---|---|",
    ]
    for setting in Settings.rows():
        also = f" (also read: {', '.join(f'`{name}`' for name in setting.env[1:])})" if setting.env[1:] else ""
        allowed = f"; {setting.allowed}" if setting.allowed else ""
        lines.append(
            f"| `{setting.env[0]}` | {shown(setting.default)} | {setting.unit} | {setting.description}{allowed}{also} |"
        )
    return "\n".join(lines) + "\n"
