"""What a POST has done: told to a program at once, to a person on the page that follows.

The page's notice is kept in Redis, since an address can be made up.
"""

from __future__ import annotations

import json
import re
from secrets import token_hex
from typing import Any

from flask import jsonify, redirect, request, url_for
from redis import Redis
from redis.exceptions import RedisError

from ..connection.away import is_forbidden
from ..foreign import bounded
from ..monitoring.words import count
from ..store.keys import notice_key
from .parameters import page_of_form

#: Seconds for which it is kept: the browser asks for the page at once.
_KEPT = 60
_TOKEN = re.compile(r"[0-9a-f]{32}")
#: What was done -> the sentence, given the queue (or another name), and the jobs and entries in words.
_SENTENCES = {
    "requeued": "{jobs} requeued in “{queue}”",
    "buried": "{jobs} moved to the dead letters of “{queue}”",
    "purged": "{jobs} deleted from “{queue}”",
    "swept": "{entries} without a job removed from “{queue}”",
    "cancelled": "{jobs} of “{queue}” is cancelled",
    "paused": "“{queue}” is paused",
    "resumed": "“{queue}” is resumed",
    "limited": "“{queue}” has a new limit",
    "unlimited": "the limit that an operator set for “{queue}” is removed",
    "stop": "a job was told to stop: {queue}",
    "hold": "a worker was told to claim nothing more: {queue}",
    "release": "a worker was told to claim again: {queue}",
    "shutdown": "a worker was told to shut down: {queue}",
}


def answer(
    client: Redis, report: dict[str, Any], did: str, queue: str, done: int, to: str, more: bool = False, **where: Any
) -> Any:
    """Answer a POST: a program with the report, a button with the page that follows. Blocks for a round trip.

    Args:
        client: of the server.
        report: has ``trail_error`` if the trail could not be written.
        did, queue, done, more: what is told, see ``_SENTENCES``; ``more`` could be done.
        to, where: the view that follows, and its parameters.
    """
    if not page_of_form():
        return jsonify(bounded(report))
    token = token_hex(16)
    try:
        client.set(notice_key(token), json.dumps([did, queue, done, more, "trail_error" in report]), ex=_KEPT)
    except RedisError as error:
        if not is_forbidden(error):
            raise
        # The user of the server may do it, and not tell it.
    return redirect(url_for(to, did=token, **where), 303)


def told(client: Redis) -> str:
    """Return what the address that was asked for says was done, "" if nothing. Blocks for a round trip, if at all."""
    token = request.args.get("did", "")
    note: Any = client.get(notice_key(token)) if _TOKEN.fullmatch(token) else None
    try:
        did, queue, done, more, untold = json.loads(note or "")
        sentence = _SENTENCES[did].format(queue=queue, jobs=count(done, "job"), entries=count(done, "entry", "entries"))
    except (TypeError, ValueError, KeyError, RecursionError):
        # The text is no notice, or none of ours.
        return ""
    sentence = f"{sentence[0].upper()}{sentence[1:]}.{' There are more: press again.' if more else ''}"
    return sentence + (" The trail in Redis was not written." if untold else "")
