"""The worker's log lines go where they went, whatever a job does to logging."""

from __future__ import annotations

import logging
from typing import Any


class Logs:
    """Keeps what the worker logs going where it went; how a job's own loggers are set up is theirs."""

    def __init__(self) -> None:
        manager = logging.root.manager
        #: Of no use but to tell that a job has disabled all loggers that existed, as dictConfig does.
        self._any = logging.getLogger("rq_pooled.surroundings.any")
        self._any.disabled = False
        loggers = [logger for logger in manager.loggerDict.values() if isinstance(logger, logging.Logger)]
        self._all = {logger: logger.disabled for logger in loggers}
        self._ours = [
            (logger, self._state(logger)) for logger in self._all if logger.name.split(".")[0] in ("rq", "rq_pooled")
        ]
        self._disabled = manager.disable
        self._root_handlers = logging.root.handlers.copy()
        self._worker = logging.getLogger("rq.worker")
        self._handlers = _effective_handlers(self._worker)
        self._levels = [(handler, handler.level) for handler in self._handlers]

    @staticmethod
    def _state(logger: logging.Logger) -> tuple[Any, ...]:
        return logger.level, logger.propagate, logger.handlers.copy(), logger.filters.copy()

    def restore(self) -> None:
        """Give it back."""
        if logging.root.manager.disable != self._disabled:
            logging.disable(self._disabled)
        if self._any.disabled:
            for logger, disabled in self._all.items():
                logger.disabled = disabled
        for logger, state in self._ours:
            level, propagate, handlers, filters = state
            if logger.disabled and not self._all[logger]:
                logger.disabled = False
            if logger.level != level:
                logger.setLevel(level)
            if logger.handlers != handlers or logger.propagate != propagate or logger.filters != filters:
                logger.handlers[:], logger.filters[:], logger.propagate = handlers, filters, propagate
        # The root logger's handlers are the program's; the worker's lines go where they went.
        if logging.root.handlers != self._root_handlers:
            self._root_handlers = logging.root.handlers.copy()
            self._worker.handlers[:], self._worker.propagate = self._handlers, False
            self._ours = [(logger, self._state(logger)) for logger, _ in self._ours]
        for handler, level in self._levels:
            if handler.level != level:
                handler.setLevel(level)


def _effective_handlers(logger: logging.Logger | None) -> list[logging.Handler]:
    handlers = []
    while logger is not None:
        handlers += logger.handlers
        logger = logger.parent if logger.propagate else None
    return handlers
