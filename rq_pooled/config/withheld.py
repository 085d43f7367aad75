"""Takes what is secret out of a process's environment, where reports and subprocesses would find it."""

from __future__ import annotations

import os
from collections.abc import Iterable

#: What was taken out; a process that asks for its settings still finds it.
withheld: dict[str, str] = {}


def withhold(names: Iterable[str]) -> None:
    """Take variables out of the environment; settings that are loaded later still see them."""
    for name in names:
        if (value := os.environ.pop(name, None)) is not None:
            withheld[name] = value
