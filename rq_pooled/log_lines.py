"""Log lines: each begins with its worker's name, and what others wrote can neither forge one nor move a cursor."""

from __future__ import annotations

import logging
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rq.logutils import colorizer

from .foreign import MAX_LINE, middle_left_out, printable

#: What is allowed in a traceback, and how RQ's messages end that contain one.
_BREAKS = re.compile(r"([\n\t])")
_ENDS_WITH_TRACEBACK = "\n%s"
#: Characters of a traceback that are kept.
MAX_TRACEBACK = 64 * 1024
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


class _Coloured(str):
    """A text that RQ itself has coloured, since it writes to a terminal: others' texts may contain the same codes."""

    __slots__ = ("colour", "inner")
    colour: str
    inner: str


def _mark_colours() -> None:
    """Have RQ's colours tell what they have coloured."""
    inherited: Any = colorizer.colorize

    def colorize(color_key: str, text: str) -> str:
        said: str = inherited(color_key, text)
        if said is text:
            return text
        marked = _Coloured(said)
        marked.colour, marked.inner = color_key, text
        return marked

    colorizer.colorize = colorize  # type: ignore[method-assign]


def _shown(value: object, is_traceback: bool = False) -> object:
    if isinstance(value, _Coloured):
        return colorizer.codes[value.colour] + str(_shown(value.inner)) + colorizer.codes["reset"]
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, bytes):
        return printable(value, MAX_LINE)
    try:
        # A job shows its description.
        words = str(value)
    except Exception:  # noqa: BLE001 - of any class: what formats the record says so
        return value
    if len(words) <= MAX_LINE and words.isprintable():
        return value
    if is_traceback:
        parts = enumerate(_BREAKS.split(middle_left_out(words, MAX_TRACEBACK)))
        return "".join(part if number % 2 else printable(part) for number, part in parts)
    return printable(words, MAX_LINE)


def _is_fine(value: object) -> bool:
    """Tell whether a value is shown as it is, for most of those that lines have."""
    if type(value) is str:
        return len(value) <= MAX_LINE and value.isprintable()
    return type(value) in _FINE


class OneLine(logging.Filter):
    """Shows control characters of a record as text, and cuts what is long; a traceback keeps its lines."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; let it pass."""
        if isinstance(record.args, tuple) and not all(map(_is_fine, record.args)):
            last = isinstance(record.msg, str) and record.msg.endswith(_ENDS_WITH_TRACEBACK)
            record.args = (*map(_shown, record.args[:-1]), _shown(record.args[-1], last))
        elif isinstance(record.args, dict):
            record.args = {name: _shown(value) for name, value in record.args.items()}
        # What was put into the text itself; a text that has arguments is a program's own.
        if not record.args and isinstance(record.msg, (str, bytes, Exception)):
            record.msg = _shown(record.msg)
        if record.exc_info and not record.exc_text and record.exc_info[0] is not None:
            # Formatters take it from here.
            record.exc_text = str(_shown(logging.Formatter().formatException(record.exc_info), True))
        return True


_filter = OneLine()
#: Each by name: a filter does not hold for the loggers below.
_LOGGERS = (
    *(f"rq.{name}" for name in ("worker", "job", "queue", "registry", "webhook")),
    *(f"rq_pooled.{name}" for name in ("guard", "loop", "pool", "prefork", "queue", "scheduler")),
)
_OURS = ("rq", "rq_pooled", "rq_scheduler")


def keep_lines() -> None:
    """Have the loggers of RQ and ours show what others wrote that way; a second time changes nothing."""
    if colorizer.colorize.__module__ != __name__:
        _mark_colours()
    known = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in _OURS]
    for name in (*_LOGGERS, *known):
        logging.getLogger(name).addFilter(_filter)
