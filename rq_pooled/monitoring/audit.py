"""The trail: who did what to which queue, on the page or by a command. A log line each, and a capped stream in Redis.

The log is what counts, since who can write to Redis can change the stream. The stream has an entry before anything is
done, too, so that it also tells of what was never ended.
"""

from __future__ import annotations

import logging
import os
import pwd
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import Any, NamedTuple

from redis import Redis
from redis.exceptions import RedisError

from ..config.secrets import message_of
from ..errors import ConfigurationError, UnknownQueue
from ..foreign import LAST_TIME, MAX_VALUE, label, names_key, printable, whole_number
from ..store.keys import AUDIT
from ..store.queues import all_shown
from ..store.views import current_view, is_shown
from ..wire import raw, text

#: Entries that the stream keeps (a few more, since the server drops whole nodes), and characters of a long text.
KEPT, MAX_TEXT = 10_000, 500
#: Bytes of a queue's name that are kept as they are; what is known of a longer one is for who may view all.
_MAX_QUEUE = 1000
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


class Noted:
    """Deeds that are under way.

    Args:
        deeds: with what is known before they are done. Replace them, or take them out, by what is known afterwards.
    """

    def __init__(self, deeds: Iterable[Deed]) -> None:
        self.deeds = list(deeds)
        #: Why the stream could not be written, "" if it was; known when they have ended.
        self.error = ""
        #: An error has ended them, of which is told anyhow.
        self.failed = False

    def done(self, jobs: int) -> None:
        """Note with how many jobs each has been done."""
        self.deeds = [one._replace(jobs=jobs) for one in self.deeds]

    @property
    def report(self) -> dict[str, str]:
        """What a report says of it: ``trail_error`` where the stream could not be written, else nothing."""
        return {"trail_error": self.error} if self.error else {}


@contextmanager
def noting(client: Redis, actor: Actor, *deeds: Deed) -> Iterator[Noted]:
    """Write deeds down as begun, and, when the block ends, how they ended in place of that. Blocks for three trips.

    Where an error ends the block, deeds without a number of jobs have broken off. What is refused for its arguments
    was not done: nothing of it stays.
    """
    noted = Noted(deeds)
    begun = [one for one in _write(client, actor, _saying("begun", noted.deeds)) if isinstance(one, bytes)]
    try:
        yield noted
    except (ConfigurationError, UnknownQueue):
        noted.failed = True
        noted.deeds = [one for one in noted.deeds if one.jobs]
        raise
    except BaseException:
        noted.failed = True
        noted.deeds = [*(one for one in noted.deeds if one.jobs is not None), *_saying("broken off", noted.deeds)]
        raise
    finally:
        noted.error = record(client, actor, *noted.deeds)
        if begun and not noted.error:
            with suppress(RedisError, OSError):
                client.xdel(AUDIT, *begun)


def _saying(word: str, deeds: Iterable[Deed]) -> list[Deed]:
    return [one._replace(what=f"{word}; {one.what}" if one.what else word) for one in deeds if one.jobs is None]


def record(client: Redis, actor: Actor, *deeds: Deed) -> str:
    """Write deeds into the log and the stream; return why the stream could not be written, "" if it was.

    Blocks for a round trip. What was done is done: an error here is logged, and ends nothing.
    """
    for deed in deeds:
        _log.info("%s", sentence({**_shown(actor, deed), "count": deed.jobs}))
    error = next((one for one in _write(client, actor, deeds) if isinstance(one, Exception)), None)
    if error is None:
        return ""
    reason = f"the trail in Redis was not written: {message_of(error)}"
    _log.error("%s", printable(reason, MAX_TEXT))
    return reason


def _shown(actor: Actor, deed: Deed) -> dict[str, str]:
    values = {**actor._asdict(), "action": deed.action, "queue": deed.queue, "what": deed.what}
    return {name: printable(value, MAX_TEXT if name == "what" else MAX_VALUE) for name, value in values.items()}


def _write(client: Redis, actor: Actor, deeds: Iterable[Deed]) -> list[Any]:
    """Return for each deed the id of its entry, or why there is none."""
    pipeline = client.pipeline(transaction=False)
    for deed in deeds:
        fields: dict[Any, Any] = {**_shown(actor, deed), "count": "" if deed.jobs is None else str(deed.jobs)}
        # By its own name it is asked who may know of it.
        fields["queue"] = raw(deed.queue)
        if len(fields["queue"]) > _MAX_QUEUE:
            fields["cut"] = label(fields.pop("queue"))
        pipeline.xadd(AUDIT, fields, maxlen=KEPT, approximate=True)
    try:
        return pipeline.execute(raise_on_error=False)
    except (RedisError, OSError) as error:
        return [error]


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
        entries: Any = client.xrevrange(AUDIT, count=KEPT if current_view().is_restricted else limit)
    found: list[dict[str, Any]] = []
    for entry_id, fields in entries or ():
        written = {text(name): value for name, value in fields.items() if len(name) < MAX_VALUE}
        queue = text(written.get("queue", b""))
        # What names no queue may be about any.
        if is_shown(queue) if queue and "cut" not in written else everything:
            found.append(_entry(text(entry_id), written))
    return found[:limit]


def _entry(entry_id: str, written: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"time": min(whole_number(entry_id.partition("-")[0]) / 1000, LAST_TIME)}
    for name in ("who", "origin", "door", "action", "queue", "count", "what"):
        entry[name] = printable(written.get(name, b""), MAX_TEXT if name == "what" else MAX_VALUE)
    if "cut" in written:
        entry["queue"] = printable(written["cut"], 2 * MAX_VALUE)
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
