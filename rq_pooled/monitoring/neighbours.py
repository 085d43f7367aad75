"""Asks a worker of this host about a server that takes no more connections: it still has one.

The worker answers processes of its own user at the Unix socket at which its jobs reach Redis.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from glob import glob
from typing import Any

from redis import Redis

from ..capacity.clients import client_rows
from ..capacity.level import read_info
from ..deadline import current
from ..process.peer import is_of_this_user
from .guard import ours_and_others

#: Seconds that one worker has for its answer, workers that are asked, and bytes of an answer.
_WITHIN, _ASKED, _MOST = 1.0, 10, 16 * 1024 * 1024


def ask_neighbours(client: Redis) -> dict[str, Any] | None:
    """Return who holds the connections of the client's server, as a worker of this host and user sees it.

    Blocks for at most ten seconds, and within the caller's deadline.

    Returns:
        ``connected``, ``maxclients`` (or None), ``processes`` and ``others`` as of ``ConnectionGuard.describe``; None
        where no worker answers that has a connection to the same server.
    """
    wanted = _addresses(client.connection_pool.connection_kwargs)
    for path in sorted(glob(os.path.join(tempfile.gettempdir(), "rq_pooled-*", "jobs.sock")))[:_ASKED]:
        # A job of this user may listen there, too, and answer anything.
        with suppress(OSError, ValueError, TypeError, RecursionError):
            # Temporary folders are shared: another user's could answer anything.
            if os.lstat(os.path.dirname(path)).st_uid != os.geteuid():
                continue
            address, info, clients = json.loads(_ask(path))
            # A worker whose server is away, or refuses the list, knows none.
            rows = client_rows((clients or "").encode())
            if rows and address and (address[0], address[1]) in wanted:
                ours, others = ours_and_others(rows)
                connected, maxclients = read_info((info or "").encode())
                # Whether they publish statistics is not known here.
                processes = [{**one, "alive": True} for one in ours]
                return {
                    "connected": connected or len(rows),
                    "maxclients": maxclients,
                    "processes": processes,
                    "others": others,
                }
    return None


def _ask(path: str) -> bytes:
    deadline = current()
    end = time.monotonic() + max(0.05, min(_WITHIN, deadline.left() if deadline is not None else _WITHIN))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.settimeout(max(0.001, end - time.monotonic()))
        door.connect(path)
        if not is_of_this_user(door):
            return b""
        door.sendall(b"who\n")
        answer = bytearray()
        while not answer.endswith(b"\n") and len(answer) < _MOST:
            # Each piece has what is left of the time.
            door.settimeout(max(0.001, end - time.monotonic()))
            piece = door.recv(256 * 1024)
            if not piece:
                break
            answer += piece
        return bytes(answer)


def _addresses(options: Mapping[str, Any]) -> set[tuple[str, int]]:
    """Return the addresses that a client's host and port lead to, none if it names no host."""
    if not options.get("host"):
        return set()
    port = int(options.get("port") or 6379)
    return {(str(found[4][0]), port) for found in socket.getaddrinfo(options["host"], port, type=socket.SOCK_STREAM)}
