"""How commands print: what others wrote can neither move the cursor, nor forge a line, nor end the command."""

from __future__ import annotations

import json
from typing import Any

import click

from ..foreign import plain, printable

#: Characters of a line that are shown.
MAX_LINE = 4000


def say(*lines: object, err: bool = False) -> None:
    """Print each of these as one line without control characters."""
    for line in lines:
        click.echo(printable(line, MAX_LINE), err=err)


def say_json(data: Any, indent: int | None = 2) -> None:
    """Print data as JSON, in ASCII."""
    click.echo(json.dumps(plain(data), indent=indent).replace("\x7f", "\\u007f"))
