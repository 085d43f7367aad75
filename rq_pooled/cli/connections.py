"""``rq-pooled connections``: who holds the server's connections."""

from __future__ import annotations

from typing import Any

import click
from redis.exceptions import NoPermissionError

from ..config.settings import Settings
from ..connection.away import LOST
from ..connection.connect_errors import FULL
from ..durations import show_duration
from ..errors import ServerUnsupported
from ..monitoring.audit import Deed
from ..monitoring.guard import ConnectionGuard
from ..monitoring.neighbours import ask_neighbours
from .audit import noted
from .options import open_server, server_options
from .printing import say, say_json
from .tables import table

_SILENT = " (silent)"
#: What a worker of this host does not tell about a server that is full.
_UNKNOWN: dict[str, Any] = {
    **dict.fromkeys(("share", "trend_per_minute", "minutes_left", "maxclients")),
    "steady_growth": False,
    "orphans": [],
    "refused": [],
    "history": [],
}


@click.command()
@click.option("--reap", is_flag=True, help="Close the connections of processes that are gone.")
@server_options
def connections(url: str | None, as_json: bool, reap: bool) -> None:
    """Show who holds how many of the server's connections.

    Ours are listed by process and role, others by name and address. A connection counts as left behind if its process
    publishes no statistics and does not use it. The process may still live in another container, so --reap alone
    closes such connections; a process that does live opens a new one. Where the server is full, a worker of this host
    and user is asked.
    """
    client = open_server(url)
    guard = ConnectionGuard(Settings.load({"url": url}), client)
    try:
        closed: list[dict[str, Any]] = []
        if reap:
            what = "connections left behind"
            with noted(client, Deed("reap", "", None, what)) as under_way:
                closed = guard.reap()
                under_way.deeds = [Deed("reap", "", len(closed), what)] if closed else []
        found = guard.describe()
    except NoPermissionError as error:
        raise ServerUnsupported(
            f"the server refuses CLIENT KILL to this user: {error}; let it, or use another"
        ) from None
    except LOST as error:
        if FULL not in str(error) or (known := ask_neighbours(client)) is None:
            raise
        found, closed = {**_UNKNOWN, **known, "level": "stop"}, []
        if found["maxclients"]:
            found["share"] = found["connected"] / found["maxclients"]
        say("rq-pooled: the server is full, and refused this command; a worker of this host was asked", err=True)
    if as_json:
        say_json({**found, "reaped": closed})
        return
    if reap:
        say(f"Closed {len(closed)} connection{'s' * (len(closed) != 1)} left behind.")
        for one in closed:
            say(f"  {one['name']} from {one['address']}, idle for {show_duration(one['idle'])}")
    say(*connection_lines(found))


def connection_lines(found: dict[str, Any]) -> list[str]:
    """Return what ``ConnectionGuard.describe`` found, for people."""
    if found["connected"] is None:
        head = "The server does not tell how many connections it has"
    else:
        of = f" of {found['maxclients']} ({found['share']:.1%})" if found["maxclients"] else " of an unknown number"
        head = f"{found['connected']}{of} connections in use: {found['level']}"
    if found["trend_per_minute"] is not None:
        head += f"; {found['trend_per_minute']:+g} a minute"
    if found["steady_growth"]:
        left = found["minutes_left"]
        head += ", growing steadily" + ("" if left is None else f": full in {left:g} minutes")
    lines = [head]
    if found["refused"]:
        lines.append(f"Refused to this user: {', '.join(found['refused'])}; what they would show is missing")
    rows: list[list[object]] = [["HELD BY", "ROLES", "FROM", "CONN"]]
    for one in found["processes"]:
        roles = ", ".join(f"{role} {count}" for role, count in sorted(one["roles"].items()))
        name = one["name"]
        if one["worker"]:
            name += f" (horse of {one['worker']})"
        elif not one["alive"] and not set(one["roles"]) <= {"cli", "probe"}:
            # Commands and probes publish nothing.
            name += _SILENT
        rows.append([name, roles, one["address"], one["total"]])
    rows += [[other["name"] or "(no name)", "-", other["address"], other["total"]] for other in found["others"]]
    if len(rows) > 1:
        lines += ["", *table(rows, left=3)]
    if any(str(row[0]).endswith(_SILENT) for row in rows):
        lines.append("(silent): it has published no statistics, as a new web process, or one that is gone")
    if found["orphans"]:
        lines += ["", "Left behind, it seems: their processes publish no statistics, and do not use them."]
        rows = [["CONNECTION", "NAME", "FROM", "IDLE", "AGE"]]
        for one in found["orphans"]:
            rows.append([one["id"], one["name"], one["address"], show_duration(one["idle"]), show_duration(one["age"])])
        lines += table(rows, left=3)
        lines.append("Close them with --reap, if you know that these processes are gone.")
    return lines
