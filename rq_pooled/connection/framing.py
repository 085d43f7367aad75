"""Finds where commands and replies begin and end in a stream of bytes. They are cut, never decoded.

The parent writes the commands of many processes to one connection and gives each its own replies. Lengths are read as
strictly as the server reads them: a boundary seen elsewhere would give one job another job's replies.
"""

from __future__ import annotations

#: A header line (``*3``, ``$100``) has at most this many bytes; a status or an error may have more.
_MAX_HEADER = 32
_MAX_LINE = 1024 * 1024
#: Redis accepts at most this length of a bulk string, and this many words, by default.
_MAX_LENGTH = 512 * 1024 * 1024
#: The lengths that nearly all headers have; looking one up is as strict as checking it, and faster.
_LENGTHS = {b"%d" % number: number for number in range(4096)}

_STAR, _DOLLAR = b"*$"


class Malformed(ValueError):
    """The bytes do not follow the protocol."""


def _length(token: bytes) -> int:
    """Return a length that is not among ``_LENGTHS``."""
    if not token.isdigit() or token[0] == 48 or len(token) > 9 or int(token) > _MAX_LENGTH:
        raise Malformed(f"{token[:_MAX_HEADER]!r} is no length")
    return int(token)


def cut_command(data: bytes, start: int) -> tuple[int, bytes]:
    """Return the end of the command that begins at ``start``, and its name as written; -1 if bytes are missing.

    Raises:
        Malformed: the command is no array of bulk strings, the only form that redis-py sends.
    """
    find, lengths, size = data.find, _LENGTHS, len(data)
    if data[start] != _STAR:
        raise Malformed(f"a command begins with {data[start : start + 1]!r}")
    end = find(b"\r\n", start, start + _MAX_HEADER)
    if end < 0:
        return _unfinished(start, size)
    token = data[start + 1 : end]
    # A command of no words has no reply, which would shift the replies of all others. ``_length`` refuses 0, too.
    words = lengths.get(token) or _length(token)
    position = end + 2
    name = None
    for _ in range(words):
        if position >= size:
            return -1, b""
        if data[position] != _DOLLAR:
            raise Malformed(f"a word begins with {data[position : position + 1]!r}")
        end = find(b"\r\n", position, position + _MAX_HEADER)
        if end < 0:
            return _unfinished(position, size)
        token = data[position + 1 : end]
        length = lengths.get(token)
        position = end + 4 + (_length(token) if length is None else length)
        # Valkey 9 closes the connection if a word does not end in CRLF; older servers skip the two bytes.
        if position <= size and (data[position - 2] != 13 or data[position - 1] != 10):
            raise Malformed("a word does not end where its length says")
        if name is None:
            name = data[end + 2 : position - 2]
    return (position, name or b"") if position <= size else (-1, b"")


def _unfinished(start: int, size: int) -> tuple[int, bytes]:
    if size - start >= _MAX_HEADER:
        raise Malformed("a header has no end")
    return -1, b""


def words_of(data: bytes, start: int, most: int) -> list[bytes]:
    """Return the first ``most`` words of the command at ``start``, as far as they have arrived."""
    words: list[bytes] = []
    end = data.find(b"\r\n", start)
    if end < 0:
        return words
    count, position = int(data[start + 1 : end]), end + 2
    for _ in range(min(count, most)):
        end = data.find(b"\r\n", position)
        if end < 0:
            break
        stop = end + 2 + int(data[position + 1 : end])
        if stop > len(data):
            break
        words.append(data[end + 2 : stop])
        position = stop + 2
    return words


class Passage:
    """Follows one long command from its beginning, through pieces of any size, instead of waiting for all of it."""

    def __init__(self) -> None:
        #: Words that have not begun, None before the header; missing bytes of the present word.
        self._words: int | None = None
        self._rest = 0

    def follow(self, data: bytes, start: int) -> tuple[int, bool]:
        """Return how far the command goes in ``data`` from ``start``, and whether it ends there.

        The caller passes the bytes behind that point again, with more. Raises ``Malformed``.
        """
        position, size = start, len(data)
        while True:
            took = min(self._rest, size - position)
            position, self._rest = position + took, self._rest - took
            if self._words == 0 and not self._rest:
                return position, True
            end = data.find(b"\r\n", position, position + _MAX_HEADER)
            if position >= size or end < 0:
                if size - position >= _MAX_HEADER:
                    raise Malformed("a header has no end")
                return position, False
            token = data[position + 1 : end]
            length = _LENGTHS[token] if token in _LENGTHS else _length(token)
            if data[position] != (_STAR if self._words is None else _DOLLAR):
                raise Malformed(f"a word begins with {data[position : position + 1]!r}")
            if self._words is None:
                self._words = length or _length(token)
            else:
                self._words, self._rest = self._words - 1, length + 2
            position = end + 2


class ReplyCutter:
    """Finds the ends of replies in what a server sends, piece by piece. Understands RESP2 and RESP3."""

    __slots__ = ("_rest", "_todo", "fresh", "push")

    def __init__(self) -> None:
        #: Incomplete values of the present reply; missing bytes of the present string.
        self._todo = 0
        self._rest = 0
        #: True while no reply has begun.
        self.fresh = True
        #: The present or last reply is a push, which answers no command.
        self.push = False

    @property
    def in_string(self) -> bool:
        """Tell whether a string has begun that is not complete."""
        return self._rest > 0

    def cut(self, data: bytes, position: int) -> tuple[int, bool]:
        """Return how far the reply goes in ``data`` from ``position``, and whether it ends there.

        The caller passes the bytes behind that point again, with more.

        Raises:
            Malformed: the bytes are no reply of a server.
        """
        size, find, start = len(data), data.find, position
        todo, rest = self._todo, self._rest
        if self.fresh:
            if position >= size:
                return position, False
            todo, self.push = 1, data[position] == 62
        if rest:
            took = min(rest, size - position)
            position, rest = position + took, rest - took
        while not rest and todo:
            end = find(b"\r\n", position)
            if end < 0:
                if size - position > _MAX_LINE:
                    raise Malformed("a line has no end")
                break
            kind = data[position]
            # The kinds are $, = and !: string, verbatim string, and long error.
            if kind == _DOLLAR or kind == 61 or kind == 33:
                length = int(data[position + 1 : end])
                position = end + 2
                if length >= 0:
                    position += length + 2
                    if position > size:
                        position, rest = size, position - size
            elif kind in b"+-:_#,(":
                position = end + 2
            elif kind in b"*~>%|":
                count = int(data[position + 1 : end])
                position = end + 2
                if count > 0:
                    todo += count * (2 if kind in b"%|" else 1)
                # Attributes stand before the value that they describe.
                todo += kind == 124
            else:
                raise Malformed(f"a reply begins with {data[position : position + 1]!r}")
            todo -= 1
        self._todo, self._rest = todo, rest
        done = not todo and not rest
        # An incomplete header does not count as begun, because it is read again.
        self.fresh = done or (self.fresh and position == start)
        return position, done
