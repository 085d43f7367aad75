"""What recorded commands will have written: for reads that come before the server has them.

RQ writes an outcome and then reads from the server; here the outcome is on a tape until the parent has recorded it. So
a read is answered from the server and the tape together. Only what RQ reads of jobs is known: hashes, sets, results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class _Value:
    """What is known of one key."""

    #: It was deleted on the tape: what the server holds of it does not count.
    fresh: bool = False
    #: Field of a hash -> value, None where it was deleted.
    fields: dict[bytes, bytes | None] = field(default_factory=dict)
    #: Member of a set -> whether it is in.
    members: dict[bytes, bool] = field(default_factory=dict)
    #: New entries of a stream, the oldest first, as redis-py returns them.
    entries: list[tuple[bytes, dict[bytes, bytes]]] = field(default_factory=list)

    @property
    def exists(self) -> bool | None:
        """Tell whether the key exists; None where only the server knows."""
        if self.entries or any(self.members.values()) or any(value is not None for value in self.fields.values()):
            return True
        return False if self.fresh else None


class Effects:
    """Follows commands, and answers reads as if they had been done; words are bytes, replies as redis-py gives them."""

    def __init__(self) -> None:
        self._keys: dict[bytes, _Value] = {}

    def write(self, words: Sequence[bytes]) -> None:
        """Take one command. What is not known has no effect here."""
        name, key = words[0], words[1] if len(words) > 1 else b""
        if name in (b"DEL", b"UNLINK"):
            for one in words[1:]:
                self._keys[one] = _Value(fresh=True)
        elif name == b"EXPIRE" and (words[2] == b"0" or words[2].startswith(b"-")):
            self._keys[key] = _Value(fresh=True)
        elif name in (b"HSET", b"HMSET"):
            self._of(key).fields.update(zip(words[2::2], words[3::2]))
        elif name == b"HDEL":
            self._of(key).fields.update(dict.fromkeys(words[2:]))
        elif name in (b"SADD", b"SREM"):
            self._of(key).members.update(dict.fromkeys(words[2:], name == b"SADD"))
        elif name == b"XADD":
            entries = self._of(key).entries
            fields = words[_id_of_entry(words) + 1 :]
            entries.append((b"%d-%d" % (time.time() * 1000, len(entries)), dict(zip(fields[::2], fields[1::2]))))

    def _of(self, key: bytes) -> _Value:
        return self._keys.setdefault(key, _Value())

    def read(self, words: Sequence[bytes], ask: Callable[[], Any]) -> Any:
        """Return the reply to a read; ``ask`` gives the server's, if it is needed."""
        name = words[0]
        if name == b"XREAD":
            # RQ waits so for a result: it would wait for what is on the tape.
            result = self._keys.get(words[-2]) if words[-3] == b"STREAMS" and words[-1] in (b"0", b"0-0") else None
            return [[words[-2], result.entries]] if result is not None and result.entries else ask()
        value = self._keys.get(words[1]) if len(words) > 1 else None
        answer = None if value is None else getattr(self, f"_{name.decode().lower()}", None)
        return ask() if answer is None else answer(value, words[2:], ask)

    # Each takes what is known of the key, the words after it, and what asks the server.

    @staticmethod
    def _exists(value: _Value, more: Sequence[bytes], ask: Callable[[], Any]) -> Any:
        return ask() if more or value.exists is None else int(value.exists)

    @staticmethod
    def _hget(value: _Value, more: Sequence[bytes], ask: Callable[[], Any]) -> Any:
        return value.fields[more[0]] if more[0] in value.fields else None if value.fresh else ask()

    @staticmethod
    def _hexists(value: _Value, more: Sequence[bytes], ask: Callable[[], Any]) -> Any:
        return value.fields[more[0]] is not None if more[0] in value.fields else False if value.fresh else ask()

    @staticmethod
    def _hmget(value: _Value, more: Sequence[bytes], ask: Callable[[], Any]) -> Any:
        known = value.fresh or all(name in value.fields for name in more)
        found = [None] * len(more) if known else ask()
        return [value.fields.get(name, old) for name, old in zip(more, found)]

    @staticmethod
    def _hgetall(value: _Value, _more: Sequence[bytes], ask: Callable[[], Any]) -> Any:
        found = {**({} if value.fresh else ask()), **value.fields}
        return {name: content for name, content in found.items() if content is not None}

    @staticmethod
    def _smembers(value: _Value, _more: Sequence[bytes], ask: Callable[[], Any]) -> Any:
        found = {*(() if value.fresh else ask()), *value.members}
        return {member for member in found if value.members.get(member, True)}

    @staticmethod
    def _sismember(value: _Value, more: Sequence[bytes], ask: Callable[[], Any]) -> Any:
        return int(value.members[more[0]]) if more[0] in value.members else 0 if value.fresh else ask()

    @staticmethod
    def _xlen(value: _Value, _more: Sequence[bytes], ask: Callable[[], Any]) -> Any:
        return (0 if value.fresh else ask()) + len(value.entries)

    @staticmethod
    def _xrevrange(value: _Value, more: Sequence[bytes], ask: Callable[[], Any]) -> Any:
        if tuple(more[:2]) != (b"+", b"-"):
            return ask()
        count = int(more[3]) if len(more) > 3 else None
        found = value.entries[::-1]
        if not value.fresh and (count is None or len(found) < count):
            found = [*found, *ask()]
        return found[:count]

    @staticmethod
    def _xrange(value: _Value, more: Sequence[bytes], ask: Callable[[], Any]) -> Any:
        if tuple(more[:2]) != (b"-", b"+"):
            return ask()
        return [*([] if value.fresh else ask()), *value.entries][: int(more[3]) if len(more) > 3 else None]


def _id_of_entry(words: Sequence[bytes]) -> int:
    """Return where the id stands in a command.

    XADD key [NOMKSTREAM] [MAXLEN|MINID [=|~] threshold [LIMIT count]] id field value …
    """
    at = 2
    while words[at].upper() in (b"NOMKSTREAM", b"MAXLEN", b"MINID", b"LIMIT"):
        if words[at].upper() != b"NOMKSTREAM":
            at += 2 if words[at + 1] in (b"=", b"~") else 1
        at += 1
    return at
