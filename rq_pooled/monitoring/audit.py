"""The trail: who did what to which queue, on the page or by a command. A log line each, and a capped stream in Redis.

The log is what counts, since who can write to Redis can change the stream.
"""

from __future__ import annotations

import logging
import os
import pwd
import socket
from datetime import datetime, timezone
from typing import Any, NamedTuple

from redis import Redis
from redis.exceptions import RedisError

from ..config.secrets import message_of
from ..errors import ConfigurationError
from ..foreign import MAX_VALUE, names_key, printable, whole_number
from ..store.keys import AUDIT
from ..store.queues import all_shown, is_shown
from ..wire import text

#: Entries that the stream keeps (a few more, since the server drops whole nodes), and characters of a long text.
KEPT, MAX_TEXT = 10_000, 500
#: Bytes of the stream's memory above which it is not read: others wrote to it.
MAX_READ = 32 * 1024 * 1024

_log = logging.getLogger("rq_pooled.audit")


class Actor(NamedTuple):
    """Who acts, and from where: an address for the page, the host for a command. ``door`` is one of the two."""

    who: str
    origin: str
    door: str


class Deed(NamedTuple):
    """What was done: with how many ``jobs`` (None: it is not known) of a queue, and ``what`` says which, or how."""

    action: str
    queue: str = ""
    jobs: int | None = None
    what: str = ""


def this_user() -> Actor:
    """Return the user and the host of this process, for commands."""
    try:
        # Not by LOGNAME and USER, which say what one likes.
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return Actor(user, socket.gethostname(), "command")


def record(client: Redis, actor: Actor, *deeds: Deed) -> str:
    """Write deeds into the log and the stream; return why the stream could not be written, "" if it was.

    Blocks for a round trip. What was done is done: an error here is logged, and ends nothing.
    """
    pipeline = client.pipeline(transaction=False)
    for deed in deeds:
        number = "" if deed.jobs is None else str(deed.jobs)
        values = {**actor._asdict(), "action": deed.action, "queue": deed.queue, "count": number, "what": deed.what}
        fields: dict[Any, Any] = {
            name: printable(value, MAX_TEXT if name == "what" else MAX_VALUE) for name, value in values.items()
        }
        _log.info("%s", sentence({**fields, "count": deed.jobs}))
        pipeline.xadd(AUDIT, fields, maxlen=KEPT, approximate=True)
    try:
        pipeline.execute()
    except (RedisError, OSError) as error:
        reason = f"the trail in Redis was not written: {message_of(error)}"
        _log.error("%s", printable(reason, MAX_TEXT))
        return reason
    return ""


def trail(client: Redis, limit: int = 100) -> list[dict[str, Any]]:
    """Return the newest entries of the stream, the newest first, of queues that may be shown.

    Blocks for two round trips. Each has ``time`` (seconds since the epoch, the server's), ``who``, ``origin``,
    ``door``, ``action``, ``queue``, ``count`` (None if it is not known) and ``what``: texts of one bounded line,
    whatever was written.

    Raises:
        ConfigurationError: the key is much larger than we make it.
        redis.exceptions.ResponseError: it is of another type; the text names it.
    """
    size = client.memory_usage(AUDIT, samples=0) or 0
    if size > MAX_READ:
        raise ConfigurationError(
            f"{AUDIT} has {size} bytes, and at most {MAX_READ} are read: find out what writes it, and delete it"
        )
    everything = all_shown(client.execute_command)
    with names_key(AUDIT):
        entries: Any = client.xrevrange(AUDIT, count=limit if everything else KEPT)
    found = (_entry(text(entry_id), fields) for entry_id, fields in entries or ())
    return [one for one in found if not one["queue"] or is_shown(one["queue"])][:limit]


def _entry(entry_id: str, fields: dict[Any, Any]) -> dict[str, Any]:
    written = {text(name): value for name, value in fields.items() if len(name) < MAX_VALUE}
    entry: dict[str, Any] = {"time": min(whole_number(entry_id.partition("-")[0]) / 1000, 253_370_764_800.0)}
    for name in ("who", "origin", "door", "action", "queue", "count", "what"):
        entry[name] = printable(written.get(name, b""), MAX_TEXT if name == "what" else MAX_VALUE)
    count = entry["count"]
    entry["count"] = int(count) if count.isascii() and count.isdigit() and len(count) <= 18 else None
    return entry


def sentence(entry: dict[str, Any]) -> str:
    """Return an entry as one line: alice from 10.0.0.7, page: requeue, 3 of 'mail' (exception=ValueError)."""
    number = "" if entry["count"] is None else f" {entry['count']}"
    queue = f" of {entry['queue']!r}" if entry["queue"] else ""
    what = f" ({entry['what']})" if entry["what"] else ""
    return (
        f"{entry['who'] or '(unknown)'} from {entry['origin']}, {entry['door']}: {entry['action']}{number}{queue}{what}"
    )


def when(entry: dict[str, Any]) -> str:
    """Return the time of an entry, in UTC."""
    return f"{datetime.fromtimestamp(entry['time'], tz=timezone.utc):%Y-%m-%d %H:%M:%S}Z"
