"""Computes one digest for a function and its arguments, by which equal calls are recognised.

A pickle cannot serve: equal arguments have different pickles if one object is referred to twice, or a dictionary was
filled in another order, and sets always may.
"""

from __future__ import annotations

import copyreg
import hashlib
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from rq.job import Job

from ..errors import ConfigurationError
from ..store.keys import unique_key

_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray)
_DEEPEST = 50


def call_key(job: Job) -> str:
    """Return the key that is shared by all jobs that call the same function with equal arguments.

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
    return unique_key(digest.hexdigest())


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
    elif _is_its_name(value):
        if "<" in value.__qualname__:
            raise TypeError(f"{value.__qualname__} is made anew each time, and its name does not tell which")
        yield f"{value.__module__}.{value.__qualname__}".encode()
    else:
        # The object is described as pickle would: by its constructor and the parts.
        reduce = copyreg.dispatch_table.get(kind)
        reduced = reduce(value) if reduce else value.__reduce_ex__(4)
        if isinstance(reduced, str):
            # A text is the name of a global object.
            yield f"{value.__module__}.{reduced}".encode()
        else:
            yield from _parts(tuple(_listed(part) for part in reduced), depth + 1)


def _is_its_name(value: Any) -> bool:
    """Tell whether a value is a class or a function, which its ``__qualname__`` describes completely.

    Other values with a ``__qualname__`` have more parts: a bound method has an object, ``list[int]`` an argument.
    """
    # The type is checked, because up to Python 3.10 isinstance() takes list[int] for a class.
    kind = type(value)
    if kind is BuiltinFunctionType:
        return value.__self__ is None or isinstance(value.__self__, ModuleType)
    return issubclass(kind, (type, FunctionType))


def _joined(value: Any, depth: int) -> bytes:
    return b"".join(b"%d:%b" % (len(part), part) for part in _parts(value, depth + 1))


def _listed(part: Any) -> Any:
    """Return the iterators of a ``__reduce_ex__`` as lists."""
    return list(part) if isinstance(part, Iterator) else part
