"""Words as they travel to the server, packed where the time for it is: an outcome's by its horse, not by the parent.

redis-py packs commands too, but only whole ones. The parent copies what ten horses have packed into one command.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Word = bytes | str | int | float


class Packed(NamedTuple):
    """A run of words inside a command: how many, and their RESP form."""

    words: int
    data: bytes


Command = Sequence[Word | Packed]


def text(data: bytes | str) -> str:
    """Return what a server sent as text; ids may be any bytes, which ``raw`` and ``pack`` make of it again."""
    return data.decode("utf-8", "surrogateescape") if isinstance(data, bytes) else data


def raw(word: bytes | str) -> bytes:
    """Return the bytes of what ``text`` returned: redis-py refuses to encode a text that was none."""
    return word if isinstance(word, bytes) else word.encode("utf-8", "surrogateescape")


def encoded(command: Command) -> list[Any]:
    """Return a command without packed words as redis-py takes it: a text may stand for any bytes."""
    return [raw(word) if isinstance(word, str) else word for word in command]


def pack(words: Iterable[Word]) -> Packed:
    """Return the RESP form of ``words``: text as UTF-8 (or what ``text`` was given), numbers as Python writes them."""
    parts = []
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode("utf-8", "surrogateescape")
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return Packed(len(parts), b"".join(parts))


def pack_text(words: Sequence[Word]) -> Packed:
    """Return what ``pack`` does, in half the time for words of which none is bytes."""
    text = "".join([f"${len(word)}\r\n{word}\r\n" for word in map(str, words)])
    # Otherwise a word has not as many bytes as characters.
    return Packed(len(words), text.encode()) if text.isascii() else pack(words)


def pack_runs(runs: Iterable[Sequence[Word]]) -> Packed:
    """Return the RESP form of several runs of words, each led by its length, as the scripts take commands."""
    return pack(word for run in runs for word in (len(run), *run))


def pack_commands(commands: Iterable[Command]) -> bytes:
    """Return whole commands, ready to be sent."""
    parts = []
    for command in commands:
        count, data = 0, []
        for word in command:
            if isinstance(word, Packed):
                count += word.words
                data.append(word.data)
            else:
                raw = word if isinstance(word, bytes) else str(word).encode("utf-8", "surrogateescape")
                count += 1
                data.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
        parts.append(b"*%d\r\n%b" % (count, b"".join(data)))
    return b"".join(parts)
