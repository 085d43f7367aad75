"""How a job's description is shown: the one place where what a job was called with becomes text for people."""

from __future__ import annotations

import re

from ..config.describing import shown_description

#: How RQ describes a call: the function's dotted name, then its arguments.
_CALL = re.compile(r"([^\W\d][\w.<>]*)\(")


def described(description: str) -> str:
    """Return a job's description as pages, commands and JSON show it."""
    return shown_description(description)


def function_of(description: str) -> str:
    """Return the function that RQ's own description names, "" where the application gave another text."""
    found = _CALL.match(description)
    return found[1] if found else ""
