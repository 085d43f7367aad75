"""Log lines: each begins with its worker's name, and what others wrote can neither forge one nor move a cursor."""

from __future__ import annotations

import logging
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .foreign import MAX_LINE, printable

#: RQ's colours, and what is allowed in a traceback.
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")
_BREAKS = re.compile(r"(\x1b\[[0-9;]*m|[\n\t])")
_TRACEBACK = "Traceback (most recent call last)"
#: Characters of a traceback that are kept at either end.
MAX_TRACEBACK = 32 * 1024
#: Types whose values are short and printable.
_FINE = frozenset((bool, float, int, timedelta, type(None)))


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
    if isinstance(words, bytes):
        return printable(words, MAX_LINE)
    if len(words) <= MAX_LINE and words.isprintable():
        return words
    if _TRACEBACK in words:
        return _kept(_BREAKS, _middle_left_out(words))
    return _kept(_COLOUR, words[:MAX_LINE]) + (f"… ({len(words)} characters)" if len(words) > MAX_LINE else "")


def _is_fine(value: object) -> bool:
    """Tell whether a value is shown as it is, for most of those that lines have."""
    kind = type(value)
    return len(value) <= MAX_LINE and value.isprintable() if kind is str else kind in _FINE  # type: ignore[arg-type, attr-defined]


def _kept(what: re.Pattern[str], words: str) -> str:
    """Return words as printable ones, but for what the pattern finds."""
    return "".join(part if number % 2 else printable(part) for number, part in enumerate(what.split(words)))


def _middle_left_out(words: str) -> str:
    left_out = len(words) - 2 * MAX_TRACEBACK
    if left_out <= 0:
        return words
    return f"{words[:MAX_TRACEBACK]}\n[{left_out} characters left out]\n{words[-MAX_TRACEBACK:]}"


class OneLine(logging.Filter):
    """Shows control characters of a record as text, and cuts what is long; a traceback keeps its lines."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; let it pass."""
        if isinstance(record.args, tuple) and not all(map(_is_fine, record.args)):
            record.args = tuple(map(_shown, record.args))
        # What was put into the text itself; a text that has arguments is a program's own.
        if not record.args and isinstance(record.msg, (str, bytes, Exception)):
            record.msg = _shown(record.msg)
        if record.exc_info and not record.exc_text and record.exc_info[0] is not None:
            # Formatters take it from here.
            record.exc_text = str(_shown(logging.Formatter().formatException(record.exc_info)))
        return True


_filter = OneLine()
#: Each by name: a filter does not hold for the loggers below.
_LOGGERS = (
    *(f"rq.{name}" for name in ("worker", "job", "queue", "registry", "webhook")),
    *(f"rq_pooled.{name}" for name in ("guard", "loop", "pool", "prefork", "queue", "scheduler")),
)


def keep_lines() -> None:
    """Have the loggers of RQ and ours show what others wrote that way; a second time changes nothing."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_filter)
