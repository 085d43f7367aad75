"""Which processes have connections, as CLIENT LIST tells: ``<app>:<host>:<pid>``, as in the connections' names."""

from __future__ import annotations

from typing import Any

from ..config.settings import Settings
from ..connection.names import OURS, client_name
from ..foreign import whole_number


def process_name(settings: Settings) -> str:
    """Return ``<app>:<host>:<pid>`` of this process."""
    return client_name(settings, "").split(":", 1)[1].rstrip(":")


def split_name(name: str) -> tuple[str, str, int, str] | None:
    """Return (app, host, pid, role) of a connection's name in CLIENT LIST, None if it is not one of ours.

    A process of rq_pooled with another prefix of keys is another application's.
    """
    parts = name.split(":")
    if len(parts) != 5 or parts[0] != OURS or whole_number(parts[3]) == 0:
        return None
    return parts[1], parts[2], int(parts[3]), parts[4]


def client_rows(reply: Any) -> list[dict[str, Any]] | None:
    """Return the raw reply to CLIENT LIST as one dictionary per client, None if it is an error."""
    if not isinstance(reply, bytes):
        return None
    rows = []
    for line in reply.decode(errors="replace").splitlines():
        fields = dict(pair.split("=", 1) for pair in line.split(" ") if "=" in pair)
        rows.append({"name": "", "addr": "", **fields})
    return rows


def connected_processes(reply: Any, asking: str) -> set[str] | None:
    """Return the names of the processes that have a connection, None if the reply to CLIENT LIST is an error.

    Args:
        reply: the raw one.
        asking: the process that asks. It may ask over a probe, and have the name of one that was killed: a
            container's pid is always 1. So its probes do not count.
    """
    rows = client_rows(reply)
    if rows is None:
        return None
    named = [parts for row in rows if (parts := split_name(row["name"])) is not None]
    found = {(f"{app}:{host}:{pid}", role) for app, host, pid, role in named}
    return {process for process, role in found if (process, role) != (asking, "probe")}
