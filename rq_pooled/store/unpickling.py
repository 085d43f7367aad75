"""Reads pickles without running code that they name, for processes that only read a job's ``meta``.

A pickle names classes and functions, and loading it imports and calls them. Here each is an ``Inert`` object instead,
and so is a key that takes long to hash: fifty tuples, each twice in the next, take years.
Python's own reader is used: that in C takes 34 GB for ten bytes which number an object 2**31.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, ClassVar

from ..signing.envelope import is_sealed, unverified

#: The most parts of a tuple that is hashed, and what such a part is not.
_PARTS, _NESTED = 16, (tuple, frozenset)


class Inert:
    """Stands for an object whose class is not loaded. It accepts all operations of a pickle, and keeps nothing."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass

    def __setitem__(self, _key: Any, _value: Any) -> None:
        pass

    def append(self, _value: Any) -> None:
        """Take an item."""

    def extend(self, _values: Any) -> None:
        """Take items."""

    def add(self, _value: Any) -> None:
        """Take an item."""

    def __reduce__(self) -> Any:
        raise pickle.PicklingError("what was not loaded cannot be stored again")


_Reader: Any = pickle._Unpickler


class _Unpickler(_Reader):  # type: ignore[misc] # its annotations leave out what it works with
    def load_bytearray8(self) -> None:
        # Python's own makes a buffer as large as the pickle says, before it reads.
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    def load_setitem(self) -> None:
        self.stack[-2] = _key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        self.stack[::2] = map(_key, self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        self.stack[::2] = map(_key, self.stack[::2])
        super().load_dict()

    def load_frozenset(self) -> None:
        self.stack[:] = map(_key, self.stack)
        super().load_frozenset()

    def load_additems(self) -> None:
        self.stack[:] = map(_key, self.stack)
        super().load_additems()

    dispatch: ClassVar = {
        **_Reader.dispatch,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.ADDITEMS[0]: load_additems,
    }

    def find_class(self, _module: str, _name: str) -> Any:
        return Inert

    def persistent_load(self, _pid: Any) -> Any:
        return Inert()


def _key(value: Any) -> Any:
    """Return a value to be hashed: itself if that is quick, or it cannot be hashed, else an Inert object."""
    kind = type(value)
    if kind is frozenset or (kind is tuple and (len(value) > _PARTS or any(type(part) in _NESTED for part in value))):
        return Inert()
    return value


def loads_inert(data: bytes) -> Any:
    """Return the pickled value, with Inert for all but plain values. A damaged pickle may raise any error."""
    return _Unpickler(io.BytesIO(data)).load()


def plain_meta(data: bytes | None) -> dict[str, Any]:
    """Return a job's ``meta`` read with ``loads_inert``; an empty dictionary where it is none.

    No signature is verified: this is to be shown.
    """
    if data and is_sealed(data):
        data = unverified(data)[1]
    try:
        meta = loads_inert(data) if data else {}
    except Exception:  # noqa: BLE001 - a damaged pickle may raise anything
        meta = {}
    return meta if isinstance(meta, dict) else {}
