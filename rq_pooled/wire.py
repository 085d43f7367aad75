"""Words as they travel to the server, packed where the time for it is: an outcome's by its horse, not by the parent.

redis-py packs commands too, but only whole ones. The parent copies what ten horses have packed into one command.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Word = bytes | str | int | float
#: Bytes from which on a word is copied as rarely as can be.
_LONG = 16 * 1024


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
    words, parts = list(words), []
    for word in words:
        if isinstance(word, bytes):
            if len(word) > _LONG:
                return Packed(len(words), b"".join(map(_packed, words)))
            # Formatting text, one character for each byte, takes two thirds of the time.
            shown = word.decode("latin-1")
        else:
            shown = str(word)
            if not shown.isascii():
                shown = shown.encode("utf-8", "surrogateescape").decode("latin-1")
        parts.append(f"${len(shown)}\r\n{shown}\r\n")
    return Packed(len(parts), "".join(parts).encode("latin-1"))


def _packed(word: Word) -> bytes:
    raw = word if isinstance(word, bytes) else str(word).encode("utf-8", "surrogateescape")
    return b"$%d\r\n%b\r\n" % (len(raw), raw)


def pack_words(words: Sequence[str | int]) -> Packed:
    """Return what ``pack`` makes of a few texts and numbers, in half the time where all are ASCII."""
    data = "".join([f"${len(word)}\r\n{word}\r\n" for word in map(str, words)])
    return Packed(len(words), data.encode("ascii")) if data.isascii() else pack(words)


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
                count += 1
                data.append(_packed(word))
        parts.append(b"*%d\r\n%b" % (count, b"".join(data)))
    return b"".join(parts)
