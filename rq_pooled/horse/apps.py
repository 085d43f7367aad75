"""Finds the Flask application that APP names. Knows no Flask: an application is what has an ``app_context``."""

from __future__ import annotations

import importlib
from functools import reduce
from typing import Any

from ..errors import ConfigurationError


def load_app(target: str) -> Any:
    """Import ``module:app`` or ``module:factory`` and return the application; a factory is called without arguments.

    Raises:
        ConfigurationError: it cannot be imported, the factory fails, or what came of it is no Flask application.
    """
    module, _, path = target.partition(":")
    try:
        found = reduce(getattr, path.removesuffix("()").split("."), importlib.import_module(module))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's module: whatever is wrong is said in one line
        raise ConfigurationError(
            f"APP is {target!r}, which cannot be imported: {type(error).__name__}: {error}"
        ) from None
    if not hasattr(found, "app_context") and callable(found):
        try:
            found = found()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
            raise ConfigurationError(f"APP is {target!r}, which failed: {type(error).__name__}: {error}") from None
    if not hasattr(found, "app_context"):
        raise ConfigurationError(
            f"APP is {target!r}, which is a {type(found).__name__} and no Flask application or factory: name one"
        )
    return found
