"""Describes an error of a user's code in one line: a settings module, PRELOAD, APP, a class of a worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
