"""Writes exception classes as names, and tells whether an exception belongs to the kind that a name means.

Workers need not import a named class, because a class is recognised by the names of its ancestors.
"""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Iterable

from ..errors import ConfigurationError

#: A dotted name, as Python and tracebacks write it.
NAME = re.compile(r"[^\W\d][\w<>]*(?:\.[\w<>]+)*")


def names_of(kinds: Iterable[type[BaseException] | str] | type[BaseException] | str, what: str) -> tuple[str, ...]:
    """Return the dotted names of exceptions, given as one or several classes or names.

    Args:
        kinds: a name without a dot means every class of that name, one with dots a single class.
        what: the name of the argument in an error.

    Raises:
        ConfigurationError: a value is neither, or is a class that no worker can know.
    """
    if isinstance(kinds, (str, type)):
        kinds = (kinds,)
    try:
        return tuple(_name_of(kind, what) for kind in kinds)
    except TypeError:
        raise ConfigurationError(f"{what} is {kinds!r}: give exception classes or their dotted names") from None


def _name_of(kind: object, what: str) -> str:
    if isinstance(kind, str) and NAME.fullmatch(kind.strip()):
        return kind.strip()
    if isinstance(kind, type) and issubclass(kind, BaseException):
        if kind.__module__ == "__main__":
            raise ConfigurationError(
                f"{what} names {kind.__qualname__} of the program that runs now: workers know it under no such name; "
                "move it into a module"
            )
        return f"{kind.__module__}.{kind.__qualname__}"
    raise ConfigurationError(f"{what} contains {kind!r}: give exception classes or their dotted names")


def is_kind(raised: type[BaseException], names: Iterable[str]) -> bool:
    """Tell whether an exception class is, or descends from, one of these. Imports nothing."""
    ancestors = {word for cls in raised.__mro__ for word in (cls.__name__, f"{cls.__module__}.{cls.__qualname__}")}
    for name in names:
        if name in ancestors:
            return True
        # A class is often exported under a shorter name than its own.
        meant = _loaded(name)
        if meant is not None and issubclass(raised, meant):
            return True
    return False


def is_recorded_kind(recorded: str, names: Iterable[str]) -> bool:
    """Tell the same of an exception by its name alone, as ``failed/tracebacks.py`` finds it.

    Ancestors are known only for classes that are built in or loaded in this process.
    """
    names = tuple(names)
    if recorded.startswith("builtins."):
        recorded = recorded.removeprefix("builtins.")
    for name in names:
        if recorded in (name, name.removeprefix("builtins.")) or recorded.rpartition(".")[2] == name:
            return True
    known = _loaded(recorded)
    return known is not None and is_kind(known, names)


def _loaded(name: str) -> type[BaseException] | None:
    """Return the class of this name if it can be found without importing anything.

    ``getattr`` would call the ``__getattr__`` of modules that import on demand, and run a module of a ``LazyLoader``.
    """
    module, dot, attribute = name.rpartition(".")
    try:
        names = object.__getattribute__(sys.modules.get(module), "__dict__") if dot else vars(builtins)
    except AttributeError:
        return None
    found = names.get(attribute)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None
