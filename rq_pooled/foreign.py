"""Data that others wrote: any bytes, of any size, in any key. What is no text or no number harms nothing else."""

from __future__ import annotations

import hashlib
import re
import zlib
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from redis.exceptions import ResponseError

from .wire import text

#: Characters of one value, and of one line, that are shown to people; a traceback has its own bound.
MAX_VALUE, MAX_LINE = 200, 4000
#: Bytes of a recorded error that are unpacked, and how many of them are kept at either end.
MAX_UNPACKED, _HEAD, _TAIL = 8 * 1024 * 1024, 512 * 1024, 256 * 1024
#: Seconds since the epoch, a year before datetime ends: Python 3.14 looks a day further to find a zone.
LAST_TIME = 253_370_764_800
#: Bytes for which one byte of a zlib stream can stand.
_DENSEST = 1032
#: What is no character: ``text`` makes it of bytes that are no UTF-8, and JSON may contain it.
_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(value: object, most: int | None = None) -> str:
    r"""Return a value as one line without control characters: ``\n`` for a line break, ``\xff`` for a byte that is no
    text.

    Args:
        value: bytes of Redis, a text, or what has one.
        most: characters after which it is cut, and its length told instead.
    """
    shown = text(value) if isinstance(value, bytes) else str(value)
    more = f"… ({len(shown)} characters)" if most is not None and len(shown) > most else ""
    shown = shown[:most]
    return (shown if shown.isprintable() else "".join(map(_escaped, shown))) + more


def middle_left_out(words: str, most: int) -> str:
    """Return both ends of a long text, such as a traceback, and how much was between them."""
    left_out, half = len(words) - most, most // 2
    return words if left_out <= 0 else f"{words[:half]}\n[{left_out} characters left out]\n{words[-half:]}"


def label(value: object) -> str:
    """Return a name as one line of at most about MAX_VALUE characters; two that are cut or escaped differ as the names
    do.
    """
    name = text(value) if isinstance(value, bytes) else str(value)
    if name.isprintable() and len(name) <= MAX_VALUE:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{printable(name, MAX_VALUE)} #{digest}"


def shown(data: Any, most: int | None = MAX_LINE) -> Any:
    """Return data of texts, numbers, lists and dictionaries with each text as one printable line, cut after ``most``.

    The narrow space stays, which groups digits.
    """
    if isinstance(data, (str, bytes)):
        line = text(data)
        return (
            line
            if line.replace("\u202f", "").isprintable() and len(line) <= (most or len(line))
            else printable(line, most)
        )
    if isinstance(data, dict):
        return {shown(key, most): shown(value, most) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [shown(value, most) for value in data]
    return data


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte, see ``text``
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def is_text(data: bytes) -> bool:
    """Tell whether bytes are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def plain(data: Any) -> Any:
    r"""Return data of texts, numbers, lists and dictionaries with texts that any encoding takes: ``\xff`` for such a
    byte.
    """
    if isinstance(data, (str, bytes)):
        shown = text(data)
        return shown if shown.isascii() else _SURROGATE.sub(lambda found: _escaped(found[0]), shown)
    if isinstance(data, dict):
        return {plain(key): plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    return data


def bounded(data: Any) -> Any:
    """Return data as ``plain``, with texts above MAX_LINE characters cut; two names that are cut differ as before."""
    if isinstance(data, (str, bytes)):
        word = plain(data)
        return word if len(word) <= MAX_LINE else label(word)
    if isinstance(data, dict):
        return {bounded(key): bounded(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [bounded(value) for value in data]
    return data


def whole_number(value: bytes | str | None) -> int:
    """Return a number as RQ writes counts; 0 for anything else, such as one that no counter could reach."""
    word = text(value or b"")
    return int(word) if word.isascii() and word.isdigit() and len(word) <= 18 else 0


def is_number(value: object) -> bool:
    """Tell whether a value of JSON is a number that can be reckoned with and shown."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e18 < value < 1e18


def seconds_of(value: bytes | str | None) -> float | None:
    """Return a date as RQ writes it as seconds since the epoch, None if it is not one, or not of 1970 to 9998."""
    try:
        seconds = datetime.fromisoformat(text(value or b"").rstrip("Z")).replace(tzinfo=timezone.utc).timestamp()
    except (ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < LAST_TIME else None


def unpacked_error(packed: bytes | str | None) -> str:
    """Return the text of an error as RQ records it, of ``exc_string`` in a result as of ``exc_info`` in a hash.

    What is not packed is returned as text. Of a long one the middle is left out; of one above MAX_UNPACKED, as 8 kB may
    hold, nothing is returned but its size.
    """
    data = packed.encode("utf-8", "surrogateescape") if isinstance(packed, str) else packed or b""
    try:
        found = inflated(data if data[:1] == b"x" else b64decode(data), MAX_UNPACKED)
    except (ValueError, zlib.error):
        found = data
    if found is None:
        return f"the recorded error is larger than {MAX_UNPACKED // 1024 // 1024} MB, which is not unpacked"
    return _cut(found, len(found)).decode(errors="replace")


def inflated(data: bytes, most: int) -> bytes | None:
    """Return what zlib has packed; None if it is longer than ``most`` bytes, of which no more are unpacked.

    Raises:
        zlib.error: it is not packed, or cut off.
    """
    # No byte of a stream stands for more than 1032 bytes: this one cannot be too long, and one call is faster.
    if len(data) * _DENSEST <= most:
        return zlib.decompress(data)
    unpacker = zlib.decompressobj()
    found = unpacker.decompress(data, most + 1)
    if len(found) > most:
        return None
    if not unpacker.eof:
        raise zlib.error("cut off")
    return found


def _cut(data: bytes, size: int) -> bytes:
    left_out = size - _HEAD - _TAIL
    return data if left_out <= 0 else data[:_HEAD] + b"\n[%d bytes left out]\n" % left_out + data[-_TAIL:]


def error_words(error: BaseException) -> str:
    """Return the class and the text of an error that reading others' data raised, fit for one line."""
    return f"{type(error).__name__}: {printable(error, MAX_VALUE)}"


def is_wrong_type(error: Exception) -> bool:
    """Tell whether the server said, to a command or a script, that a key is of another type."""
    return "WRONGTYPE" in str(error)


@contextmanager
def names_key(key: str) -> Iterator[None]:
    """Name the key, in the error of the server, where a command inside finds one of another type."""
    try:
        yield
    except ResponseError as error:
        if not is_wrong_type(error):
            raise
        text = f"WRONGTYPE {key} is of another type than it should be: find out what writes it, and delete it"
        raise ResponseError(text) from error


def replies_of(pipeline: Any) -> list[Any]:
    """Return the replies of a pipeline, None where a key has another type: it is not to hide all others."""
    replies: list[Any] = []
    for reply in pipeline.execute(raise_on_error=False):
        if isinstance(reply, Exception) and not is_wrong_type(reply):
            raise reply
        replies.append(None if isinstance(reply, Exception) else reply)
    return replies
