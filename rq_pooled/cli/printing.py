"""How commands print: what others wrote can neither move the cursor, nor forge a line, nor end the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ..config.secrets import message_of
from ..foreign import MAX_LINE, MAX_VALUE, plain, printable
from ..store.views import is_whole, one_view


def say(*lines: object, err: bool = False) -> None:
    """Print each of these as one line without control characters."""
    for line in lines:
        click.echo(printable(line, MAX_LINE), err=err)


def say_json(data: Any, indent: int | None = 2) -> None:
    """Print data as JSON, in ASCII."""
    click.echo(json.dumps(plain(data), indent=indent).replace("\x7f", "\\u007f"))


@contextmanager
def saying_cuts() -> Iterator[None]:
    """Say at the end of the block if it could not look at all queues."""
    with one_view():
        yield
        if not is_whole():
            say("rq-pooled: there is more than is read: see `rq-pooled stats`", err=True)


def say_blocked(blocked: dict[str, list[str]], what: str) -> None:
    """Say of which queues something was not done, a line for each reason."""
    for words, queues in blocked.items():
        named = ", ".join(printable(queue, MAX_VALUE) for queue in queues)
        say(f"rq-pooled: {named}: {what}: {message_of(words)}", err=True)
