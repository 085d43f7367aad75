"""Keeps log lines what they are: names and messages that others wrote can neither forge one nor move a cursor."""

from __future__ import annotations

import logging
import re

from .foreign import printable

#: RQ's colours, and what is allowed in a traceback.
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")
_BREAKS = re.compile(r"(\x1b\[[0-9;]*m|[\n\t])")
_TRACEBACK = "Traceback (most recent call last)"


def _shown(value: object) -> object:
    if not isinstance(value, (str, bytes, Exception)):
        return value
    words = str(value) if isinstance(value, Exception) else value
    if isinstance(words, str) and words.isprintable():
        return words
    if isinstance(words, bytes):
        return printable(words)
    kept = (_BREAKS if _TRACEBACK in words else _COLOUR).split(words)
    return "".join(part if number % 2 else printable(part) for number, part in enumerate(kept))


class OneLine(logging.Filter):
    """Shows control characters in the arguments of a record as text; a traceback keeps its lines."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; let it pass."""
        if isinstance(record.args, tuple):
            record.args = tuple(map(_shown, record.args))
        return True


_filter = OneLine()
#: Each by name: a filter does not hold for the loggers below.
_LOGGERS = ("rq.worker", "rq.job", *(f"rq_pooled.{name}" for name in ("guard", "loop", "pool", "prefork", "scheduler")))


def keep_lines() -> None:
    """Have the loggers of RQ and ours show what others wrote that way; a second time changes nothing."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_filter)
