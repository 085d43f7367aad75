"""Which hooks a pool has, by its settings and its role."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

from ..deadline import hurried
from .budgeted import Budgeted
from .hooks import Hook
from .reporter import UNCOUNTED, Reporter

if TYPE_CHECKING:
    from .pool import Pool


def hooks_of(pool: Pool) -> list[Hook]:
    """Return new hooks for a pool, in the order in which they are called: the budget may close what comes back."""
    settings, role = pool.settings, pool.role
    if role in UNCOUNTED:
        return []
    if settings.budget is None:
        return [Reporter(settings)]
    # The probe gets a copy of the options, not the pool, which only its users may keep alive.
    cls: Any = hurried(pool.connection_class)
    return [Budgeted(settings, role, partial(cls, **with_role(pool.connection_kwargs, "probe"))), Reporter(settings)]


def with_role(options: dict[str, Any], role: str) -> dict[str, Any]:
    """Return options of connections that go by the name of another role."""
    return {**options, "redis_connect_func": dataclasses.replace(options["redis_connect_func"], role=role)}
