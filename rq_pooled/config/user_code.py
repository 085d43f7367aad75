"""A user's code: an error in it is told in one line, and a function that has to be awaited is none that we can call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import ConfigurationError
from .secrets import message_of


@contextmanager
def user_code(problem: str) -> Iterator[None]:
    """Turn any error that a user's code raises in the block into a ConfigurationError.

    Args:
        problem: the beginning of its text, as in "--config shop cannot be imported".
    """
    try:
        yield
    except (Exception, SystemExit) as error:  # noqa: BLE001 - any mistake of the user's
        raise ConfigurationError(f"{problem}: {type(error).__name__}: {message_of(error)}") from None


def check_not_async(name: str, call: Callable[..., Any] | None) -> None:
    """Refuse a function whose answer would have to be awaited. Raises ConfigurationError."""
    calls = (vars(kind).get("__call__") for kind in type(call).__mro__)
    for one in (call, *calls):
        if inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one):
            raise ConfigurationError(
                f"{name} is asynchronous, and its answer would never be awaited: give a function that returns it"
            )


def is_unawaited(said: Any) -> bool:
    """Tell whether an answer would have to be awaited, as that of a lambda that calls a coroutine; drop it then."""
    if not inspect.isawaitable(said):
        return False
    with suppress(Exception):
        # A coroutine that is neither awaited nor closed warns of that later.
        said.close()  # type: ignore[attr-defined]
    return True
