"""Log lines: each begins with its worker's name, and what others wrote can neither forge one nor move a cursor."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from .foreign import printable

#: RQ's colours, and what is allowed in a traceback.
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")
_BREAKS = re.compile(r"(\x1b\[[0-9;]*m|[\n\t])")
_TRACEBACK = "Traceback (most recent call last)"


if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:  # no generic class before Python 3.11
    _Adapter = logging.LoggerAdapter


class WorkerLog(_Adapter):
    """Begins each line with the name of a worker; ``worker=`` names another one, such as a slot of it."""

    def __init__(self, logger: logging.Logger, worker: str) -> None:
        super().__init__(logger, {})
        self._worker = worker

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log one line. The name is an argument of the record, since it may hold a ``%``."""
        worker = kwargs.pop("worker", self._worker)
        # The record shows the place of the caller.
        self.logger.log(level, f"Worker %s: {msg}", worker, *args, stacklevel=2, **kwargs)


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
