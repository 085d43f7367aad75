"""The page's buttons that pause and resume a queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, jsonify, redirect, request, url_for
from redis import Redis

from ..deadline import within
from ..errors import ConfigurationError
from ..foreign import printable
from ..monitoring.audit import Deed
from ..queue.pause import pause, resume
from .notices import tell
from .parameters import posted, queue_of
from .rights import PAUSE, Rights
from .trail import note

#: Seconds within which a request is answered.
DEADLINE = 4.0


def add_queue_actions(blueprint: Blueprint, client: Callable[[], Redis], rights: Rights) -> None:
    """Add the endpoint to the blueprint."""

    @blueprint.post("/queues/pause")
    def queue_pause() -> Any:
        given = posted("queue", "act")
        queue, act = queue_of(given), given.get("act", "pause")
        if act not in ("pause", "resume"):
            raise ConfigurationError(f"act is {printable(act, 50)!r}: give pause or resume")
        rights.require(PAUSE, queue)
        with within(DEADLINE, "the deadline of a page"):
            redis = client()
            changed = (pause if act == "pause" else resume)(redis, queue)
            error = note(redis, rights, Deed(act, queue)) if changed else ""
            if "page" not in request.form:
                return jsonify(
                    queue=queue, paused=act == "pause", changed=changed, **({"trail_error": error} if error else {})
                )
            token = tell(redis, f"{act}d", queue, 1, False, bool(error))
        return redirect(url_for(".page", did=token), 303)
