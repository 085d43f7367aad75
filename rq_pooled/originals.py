"""Tells RQ's own functions from what instrumentations and subclasses have put in their place.

A short way past a function of RQ's is taken only while that function is RQ's own: a wrapper around it must see the
call.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any


def is_rqs_own(function: Any) -> bool:
    """Tell whether this is a plain function that RQ defines, and nothing around it; or a method or property of one.

    By its globals, since a wrapper copies the name and module of what it wraps; it leaves attributes, which RQ's have
    not. By exact types, since wrapt's wrappers claim to be what they wrap, and have its ``__func__``.
    """
    if type(function) in (classmethod, staticmethod):
        function = function.__func__
    elif type(function) is property:
        function = function.fget
    if type(function) is not FunctionType:
        return False
    return str(function.__globals__.get("__name__", "")).startswith("rq.") and not vars(function)


def rqs_own(owner: type, name: str) -> FunctionType | None:
    """Return RQ's own function of this name below all wrappers; None where there is none any more."""
    found = inspect.getattr_static(owner, name)
    if isinstance(found, (classmethod, staticmethod)):
        found = found.__func__
    while not is_rqs_own(found):
        found = getattr(found, "__wrapped__", None)
        if found is None:
            return None
    own: FunctionType = found
    return own
