"""Which calls are the same: one digest for a function and its arguments, however they are pickled.

A pickle will not do. Two equal arguments have different pickles where one object is referred to twice, where a dictionary
was filled in another order, and for every set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from rq.job import Job

from .errors import ConfigurationError

_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray)
_DEEPEST = 50


def call_key(job: Job) -> str:
    """Return the key that all jobs share which call the same function with equal arguments.

    Raises:
        ConfigurationError: an argument cannot be compared by value.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    call = (job.func_name, job.instance, tuple(job.args or ()), dict(job.kwargs or {}))
    try:
        for part in _parts(call, 0):
            digest.update(b"%d:%b" % (len(part), part))
    except (TypeError, AttributeError, RecursionError) as error:
        raise ConfigurationError(
            f"unique_for compares calls of {job.func_name} by their arguments, and one of them cannot be described "
            f"({error}): pass ids, texts, numbers, or objects that can be pickled"
        ) from None
    return f"rq_pooled:unique:{digest.hexdigest()}"


def _parts(value: Any, depth: int) -> Iterator[bytes]:
    """Yield a description of ``value`` that is the same for equal values of one type."""
    if depth > _DEEPEST:
        raise TypeError("it is nested too deeply, or contains itself")
    kind = type(value)
    yield f"{kind.__module__}.{kind.__qualname__}".encode()
    if isinstance(value, _PLAIN) and kind in _PLAIN:
        yield bytes(value) if isinstance(value, (bytes, bytearray)) else repr(value).encode(errors="surrogatepass")
    elif kind in (tuple, list):
        yield b"%d" % len(value)
        for item in value:
            yield from _parts(item, depth + 1)
    elif kind in (set, frozenset):
        yield from sorted(_joined(item, depth) for item in value)
        yield b"end"
    elif kind is dict:
        yield from sorted(_joined(item, depth) for item in value.items())
        yield b"end"
    elif isinstance(value, type) or hasattr(value, "__qualname__"):  # a class or a function
        yield f"{value.__module__}.{value.__qualname__}".encode()
    else:  # what pickle would take apart: how it is made, and from what
        reduced = value.__reduce_ex__(4)
        yield from _parts(reduced if isinstance(reduced, str) else tuple(_listed(part) for part in reduced), depth + 1)


def _joined(value: Any, depth: int) -> bytes:
    return b"".join(b"%d:%b" % (len(part), part) for part in _parts(value, depth + 1))


def _listed(part: Any) -> Any:
    """Return the iterators of a ``__reduce_ex__`` as lists."""
    return list(part) if isinstance(part, Iterator) else part
