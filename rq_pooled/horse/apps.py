"""Finds the Flask application that APP names. Knows no Flask: an application is what has an ``app_context``."""

from __future__ import annotations

import importlib
from functools import reduce
from typing import Any

from ..config.user_code import user_code
from ..errors import ConfigurationError


def load_app(target: str) -> Any:
    """Import ``module:app`` or ``module:factory`` and return the application; a factory is called without arguments.

    Raises:
        ConfigurationError: it cannot be imported, the factory fails, or what came of it is no Flask application.
    """
    module, _, path = target.partition(":")
    with user_code(f"APP is {target!r}, which cannot be imported"):
        found = reduce(getattr, path.removesuffix("()").split("."), importlib.import_module(module))
    if not hasattr(found, "app_context") and callable(found):
        with user_code(f"APP is {target!r}, which failed"):
            found = found()
    if not hasattr(found, "app_context"):
        raise ConfigurationError(
            f"APP is {target!r}, which is a {type(found).__name__} and no Flask application or factory: name one"
        )
    return found
