"""A worker whose connections are opened by a class of the user's own, which shows a password to a gate first."""

from __future__ import annotations

import os
from typing import Any

from redis import ConnectionPool, Redis
from redis.connection import Connection

import rq_pooled

GATE_PORT, WORD = "OWN_WAY_PORT", b"open sesame\n"


class OwnWay(Connection):
    """Goes through the gate: what opens a connection in another way is not let through."""

    def _connect(self) -> Any:
        self.port = int(os.environ[GATE_PORT])
        made = super()._connect()  # type: ignore[no-untyped-call]
        made.sendall(WORD)
        return made


class Worker(rq_pooled.Worker):
    """Uses it for all its connections."""

    def __init__(self, queues: Any, **kwargs: Any) -> None:
        given = kwargs["connection"].connection_pool.connection_kwargs
        kwargs["connection"] = Redis(connection_pool=ConnectionPool(OwnWay, host=given["host"], port=given["port"]))
        super().__init__(queues, **kwargs)
