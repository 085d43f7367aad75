"""Log lines that each job brings: the first one of a text is logged as any, the others get copies of its record.

Making a record, and finding who logs it, take a third of a line's time, and give the same for each line of one place.
Filters, handlers and formatters see the same record as ever. Where anything takes part in making it (a factory, a
class of loggers, a wrapper), all lines are logged as any.
"""

from __future__ import annotations

import logging
import operator
import os
import sys
import threading
import time
from types import FunctionType
from typing import Any

#: The methods of loggers that are passed over.
_PASSED_OVER = ("info", "_log", "makeRecord", "findCaller")
_METHODS = operator.attrgetter(*_PASSED_OVER)
#: Lines that are known at once; each is a text of this package.
_MAX_KNOWN = 100


def _is_loggings_own(function: Any) -> bool:
    """Tell whether this is a plain function of the module, and nothing around it; as ``originals.is_rqs_own``."""
    return type(function) is FunctionType and function.__globals__ is vars(logging) and not vars(function)


class FrequentLines:
    """Logs lines of the level INFO, which is enabled.

    Args:
        logger: RQ's.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        #: By text: what all records of it have in common.
        self._known: dict[str, dict[str, Any]] = {}
        self._process = os.getpid()
        self._functions: tuple[Any, ...] = (None,)
        self._is_open = False

    def _may_copy(self) -> bool:
        functions = (*_METHODS(logging.Logger), logging.LogRecord.__init__, logging.getLogRecordFactory())
        # By identity, since wrapt's wrappers equal what they wrap.
        if not all(map(operator.is_, functions, self._functions)):
            self._functions = functions
            self._is_open = functions[-1] is logging.LogRecord and all(map(_is_loggings_own, functions[:-1]))
            self._known.clear()
        logger = self._logger
        return self._is_open and type(logger) is logging.Logger and vars(logger).keys().isdisjoint(_PASSED_OVER)

    def info(self, message: str, *args: object) -> None:
        """Log a line; a text always comes from one place, and has two arguments or more."""
        if not self._may_copy():
            self._logger.info(message, *args, stacklevel=2)
            return
        common = self._known.get(message)
        if common is None or self._process != os.getpid():
            self._log_first(message, *args)
            return
        now = time.time()
        record = logging.LogRecord.__new__(logging.LogRecord)
        fields = vars(record)
        fields.update(common)
        fields["args"], fields["created"], fields["msecs"] = args, now, float(int(now % 1 * 1000))
        fields["relativeCreated"] = common["relativeCreated"] + (now - common["created"]) * 1000
        fields["threadName"] = threading.current_thread().name
        processes: Any = sys.modules.get("multiprocessing.process")
        if processes is not None:
            fields["processName"] = processes.current_process().name
        self._logger.handle(record)

    def _log_first(self, message: str, *args: object) -> None:
        if self._process != os.getpid() or len(self._known) >= _MAX_KNOWN:
            self._process = os.getpid()
            self._known.clear()

        def note(record: logging.LogRecord) -> bool:
            # Before anything else adds to it.
            self._known.setdefault(message, {**vars(record), "args": None})
            return True

        filters = self._logger.filters
        filters.insert(0, note)
        try:
            self._logger.info(message, *args, stacklevel=3)
        finally:
            filters.remove(note)
