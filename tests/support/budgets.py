"""An application with a budget, and what Redis holds of it."""

from __future__ import annotations

from typing import Any

from keys import named
from redis import Redis

from rq_pooled.config import Settings
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.store.keys import budget_keys

LEASES, HELD, ORDER, WAITING = budget_keys("shop")


def shop(server: EmbeddedServer, budget: int = 4, **settings: Any) -> Settings:
    """Return the settings of a process of an application with a budget."""
    return Settings(url=server.url, budget=budget, budget_name="shop", **settings)


def ours(redis: Redis, role: str = "") -> list[str]:
    """Return the names of the application's connections, but for those that only ask."""
    names = [entry["name"] for entry in redis.client_list()]
    return [
        n for n in names if n.startswith(named("rq_pooled:shop:")) and n.endswith(role) and not n.endswith(":probe")
    ]
