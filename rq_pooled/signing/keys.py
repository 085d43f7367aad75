"""The keys that sign and verify: ``k2:secret,k1:secret``, from a text or a file. No message ever shows a secret."""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple

from ..config.secret_files import exposure, read_secret_file
from ..errors import ConfigurationError

#: Characters of a secret at least: below this, guessing is a matter of time.
SHORTEST = 16
#: Files about which a warning was logged.
_warned: set[str] = set()
#: HMAC's two pads for SHA-256, as tables for ``translate``.
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))
_BLOCK = 64
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_MAKE = "make one: python -c 'import secrets; print(\"k1:\" + secrets.token_urlsafe(32))'"


class Secret:
    """One secret, with which HMAC-SHA256 signs.

    Both pads are hashed once, here: copies of the two states halve the time of ``hmac.digest`` for small data.
    """

    __slots__ = ("_inner", "_outer", "_secret")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        key = (secret if len(secret) <= _BLOCK else sha256(secret).digest()).ljust(_BLOCK, b"\0")
        self._inner, self._outer = sha256(key.translate(_INNER)), sha256(key.translate(_OUTER))

    def mac(self, data: bytes | memoryview, more: bytes = b"") -> bytes:
        """Return the signature of data, and of what follows it."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(data)
        if more:
            inner.update(more)
        outer.update(inner.digest())
        return outer.digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self._secret)


class Keys(NamedTuple):
    """The keys of one process: the first signs, all verify."""

    name: bytes
    secret: Secret
    all: Mapping[bytes, Secret]

    def __repr__(self) -> str:
        return f"Keys({', '.join(name.decode() for name in self.all)})"


def parse_keys(text: str, source: str) -> Keys:
    """Return the keys in a text; line breaks separate them as commas do.

    Raises:
        ConfigurationError: there is none, or one cannot be used; says which by its place and name only.
    """
    found: dict[bytes, Secret] = {}
    parts = [part.strip() for part in re.split(r"[,\n]", text)]
    for place, part in enumerate(filter(None, parts), 1):
        name, colon, secret = part.partition(":")
        if not colon or not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"{source}: key {place} has no name of 1 to 32 letters, digits, '.', '-' and '_': write it as "
                f"name:secret; {_MAKE}"
            )
        if len(secret) < SHORTEST:
            raise ConfigurationError(
                # A secret with a colon, whose name was forgotten, would be shown in part as the name.
                f"{source}: the secret of key {place} has {len(secret)} characters, and {SHORTEST} are the fewest; "
                f"{_MAKE}"
            )
        if name.encode() in found:
            raise ConfigurationError(f"{source}: two keys have the name {name}: give each its own")
        found[name.encode()] = Secret(secret.encode("utf-8", "surrogateescape"))
    if not found:
        raise ConfigurationError(f"{source} is empty: leave it out to sign nothing, or {_MAKE}")
    name_of_first = next(iter(found))
    return Keys(name_of_first, found[name_of_first], found)


def read_keys(path: str) -> Keys:
    """Return the keys in a file.

    Raises:
        ConfigurationError: it cannot be read, or holds none that can be used.
    """
    source = f"the file {path} (SIGNING_KEYS_FILE)"
    keys = parse_keys(read_secret_file(path, source), source)
    # Once for each file, however often settings are read.
    if path not in _warned and (warning := exposure(path, source)):
        _warned.add(path)
        logging.getLogger("rq_pooled").warning("%s", warning)
    return keys
