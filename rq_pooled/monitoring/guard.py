"""``ConnectionGuard``: who holds how many of the server's connections, how full it is, and who seems to be gone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError

from ..capacity.clients import split_name
from ..capacity.level import Level, level_of
from ..capacity.trend import Sample, read_samples, trend
from ..config.settings import Settings
from ..pool.registry import get_connection
from ..rq_version import check_prefix
from ..store.statistics import WEB_TTL
from .processes import read_processes

log = logging.getLogger("rq_pooled.guard")

#: Among what is refused: reading what processes publish.
STATISTICS = "ZRANGEBYSCORE"
#: Roles of the connections of a worker's own process; all others belong to pools.
WORKER_ROLES = ("command", "listen")


@dataclass
class Check:
    """What ``ConnectionGuard.check`` found; ``as_dict`` has the documented, stable form."""

    level: Level
    clients: list[dict[str, Any]]
    processes: list[dict[str, Any]]
    samples: list[Sample]
    #: Commands that the server refuses to this user.
    refused: list[str] = field(default_factory=list)

    def ours(self) -> list[dict[str, Any]]:
        """Return our processes with their connections by role, most connections first."""
        return ours_and_others(self.clients, self.processes)[0]

    def others(self) -> list[dict[str, Any]]:
        """Return the other clients, counted by name and address, most connections first."""
        return ours_and_others(self.clients)[1]

    def orphans(self, silent_after: float) -> list[dict[str, Any]]:
        """Return our connections whose process publishes no statistics and has not used them for long.

        None where the statistics may not be read: then it is not known who is alive.
        """
        if STATISTICS in self.refused:
            return []
        alive = {(one["host"], one["pid"]) for one in self.ours() if one["alive"]}
        found = []
        for client in self.clients:
            parts = split_name(client["name"])
            if parts is None or parts[1:3] in alive:
                continue
            # A web process without requests publishes nothing; its connections may be idle for an hour.
            patience = silent_after if parts[3] in (*WORKER_ROLES, "job") else WEB_TTL
            idle, age = int(client["idle"]), int(client["age"])
            if min(idle, age) > patience:
                found.append(
                    {
                        "id": int(client["id"]),
                        "name": client["name"],
                        "address": client["addr"],
                        "idle": idle,
                        "age": age,
                    }
                )
        return found


class ConnectionGuard:
    """Counts the connections of a server, tells whose they are, and closes those of processes that are gone.

    Args:
        settings: thresholds; from the environment if not given.
        connection: a client of the server; that of this process's pool if not given.

    Raises:
        ConfigurationError: a setting cannot be used, or RQ keeps its data under another prefix.
    """

    def __init__(self, settings: Settings | None = None, connection: Redis | None = None) -> None:
        check_prefix()
        self.settings = settings or Settings.load()
        self._client = connection

    @property
    def client(self) -> Redis:
        """The client that the guard asks with."""
        if self._client is None:
            self._client = get_connection(self.settings)
        return self._client

    def level(self, refused: list[str] | None = None) -> Level:
        """Return how full the server is; costs the server 0.03 ms. Blocks for a round trip, or two.

        Args:
            refused: gets the names of the commands that the server does not allow.
        """
        refused = [] if refused is None else refused
        connected, maxclients = None, None
        info = self._ask(refused, "INFO", lambda: self.client.info("clients"))
        if info:
            connected = _number(info.get("connected_clients"))
            maxclients = _number(info.get("maxclients"))
        if maxclients is None:
            config = self._ask(refused, "CONFIG GET", lambda: self.client.config_get("maxclients"))
            maxclients = _number((config or {}).get("maxclients"))
        return level_of(self.settings, connected, self.settings.guard_maxclients or maxclients)

    def check(self, published: list[dict[str, Any]] | None = None) -> Check:
        """Return everything that is known about the server's connections. Blocks for four round trips.

        CLIENT LIST holds a server with 4 000 clients for 24 ms: not for a tight loop.

        Args:
            published: what processes have published, if it has been read.

        Raises:
            redis.exceptions.ConnectionError, TimeoutError: the server is away.
        """
        refused: list[str] = []
        level = self.level(refused)
        clients = self._ask(refused, "CLIENT LIST", lambda: self.client.client_list()) or []
        if level.connected is None and clients:
            level = level_of(self.settings, len(clients), level.maxclients)
        if published is None:
            published = self._ask(refused, STATISTICS, lambda: read_processes(self.client)) or []
        samples = self._ask(refused, "LRANGE", lambda: read_samples(self.client)) or []
        return Check(level, clients, published, samples, refused)

    def describe(self, published: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Return ``check`` as a plain dictionary with stable keys, see docs/monitoring.md. Blocks likewise."""
        check = self.check(published)
        level, grown = check.level, trend(check.samples)
        ours, others = check.ours(), check.others()
        roles: dict[str, int] = {}
        for process in ours:
            for role, count in process["roles"].items():
                roles[role] = roles.get(role, 0) + count
        return {
            "connected": level.connected,
            "maxclients": level.maxclients,
            "share": None if level.share is None else round(level.share, 4),
            "level": level.name,
            "trend_per_minute": grown.per_minute,
            "steady_growth": grown.steady,
            "minutes_left": grown.minutes_left(level.connected, level.maxclients),
            "ours": sum(process["total"] for process in ours),
            "roles": dict(sorted(roles.items())),
            "processes": ours,
            "others": others,
            "orphans": check.orphans(self.settings.heartbeat_ttl),
            "refused": check.refused,
            "history": [sample.as_dict() for sample in check.samples],
        }

    def reap(self) -> list[dict[str, Any]]:
        """Close the connections of processes that seem to be gone and return them. Blocks for a round trip each.

        Whether a process of another container lives cannot be checked from here: look at ``orphans`` first. A live
        process whose connection is closed opens a new one.

        Raises:
            redis.exceptions.NoPermissionError: the server refuses CLIENT KILL to this user.
        """
        closed = []
        for orphan in self.check().orphans(self.settings.heartbeat_ttl):
            if self.client.client_kill_filter(_id=str(orphan["id"])):
                closed.append(orphan)
        return closed

    def _ask(self, refused: list[str], command: str, ask: Any) -> Any:
        """Return the reply, None where the server refuses the command (an ACL, a managed service)."""
        try:
            return ask()
        except (NoPermissionError, ResponseError) as error:
            if isinstance(error, RedisConnectionError):
                raise
            refused.append(command)
            return None


def connections(connection: Redis | None = None, settings: Settings | None = None) -> dict[str, Any]:
    """Return who holds the server's connections, see ``ConnectionGuard.describe``. Blocks for four round trips."""
    return ConnectionGuard(settings, connection).describe()


def ours_and_others(
    clients: Sequence[Mapping[str, Any]], processes: Sequence[Mapping[str, Any]] = ()
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return our processes with their connections by role, and other clients by name and address; most first.

    Args:
        clients: of CLIENT LIST.
        processes: what has published statistics: who is in it is alive.
    """
    known = {(p["app"], p["host"], p["pid"]) for p in processes}
    owner = {(p["host"], pid): p["name"] for p in processes if p["worker"] for pid in p["worker"]["horses"]}
    ours: dict[tuple[str, str, int], dict[str, Any]] = {}
    others: dict[tuple[str, str], int] = {}
    for client in clients:
        parts, address = split_name(client["name"]), _host(client["addr"])
        if parts is None:
            others[client["name"], address] = others.get((client["name"], address), 0) + 1
            continue
        app, host, pid, role = parts
        one = ours.setdefault((app, host, pid), {"name": f"{app}:{host}:{pid}", "app": app, "host": host, "pid": pid})
        if "roles" not in one:
            alive = (app, host, pid) in known or (host, pid) in owner
            one.update(alive=alive, worker=owner.get((host, pid)), address=address, total=0, roles={})
        one["total"] += 1
        one["roles"][role] = one["roles"].get(role, 0) + 1
    rows: list[dict[str, Any]] = [
        {"name": name, "address": address, "total": total} for (name, address), total in others.items()
    ]
    return (
        sorted(ours.values(), key=lambda one: (-one["total"], one["name"])),
        sorted(rows, key=lambda row: (-row["total"], row["name"], row["address"])),
    )


def _number(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _host(address: str) -> str:
    """Return the host of a client's address; a Unix socket's is its path."""
    return address.rpartition(":")[0] or address


def holders(processes: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], rows: int = 10) -> list[str]:
    """Return who holds the server's connections, a line each, most first."""
    lines = [(one["total"], one["name"], ", ".join(f"{r} {n}" for r, n in one["roles"].items())) for one in processes]
    lines += [(one["total"], one["name"] or "(no name)", f"from {one['address']}") for one in others]
    lines.sort(key=lambda line: (-line[0], line[1]))
    shown = [f"{total:>6}  {name}  ({what})" for total, name, what in lines[:rows]]
    left = lines[rows:]
    return shown + ([f"{sum(line[0] for line in left):>6}  {len(left)} others"] if left else [])
