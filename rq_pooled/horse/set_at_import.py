"""What modules set when they are first imported, which in a reused process happens once."""

from __future__ import annotations

import gc
import locale
import os
import socket
import sys
import time
import warnings
from typing import Any

#: Variables that differ from job to job because the horse sets them.
_OWN_VARIABLES = (b"RQ_JOB_ID", b"RQ_WORKER_ID")


class SetAtImport:
    """What modules set when they are first imported, which in a reused process happens once.

    After a job that imported something all of it stays as it is; after another one it is given back.
    """

    def __init__(self) -> None:
        self._environ = os.environ
        self._note()

    def _note(self) -> None:
        self._modules = len(sys.modules)
        self._variables: dict[bytes, bytes] = dict(self._environ._data)  # type: ignore[attr-defined]
        self._path, self._argv = sys.path.copy(), sys.argv.copy()
        self._filters: list[Any] = list(warnings.filters)
        self._timeout = socket.getdefaulttimeout()
        self._locale = locale.setlocale(locale.LC_ALL)
        self._thresholds = gc.get_threshold()
        decimal: Any = sys.modules.get("decimal")
        self._decimal = decimal and decimal.getcontext().copy()

    def restore(self) -> None:
        """Give it back, or keep it as it now is."""
        os.environ = self._environ  # noqa: B003 - it is the object that was here before a job put its own there
        if len(sys.modules) != self._modules:
            self._note()
            return
        variables: dict[bytes, bytes] = self._environ._data  # type: ignore[attr-defined]
        for name in _OWN_VARIABLES:
            if name in variables:
                self._variables[name] = variables[name]
        if variables != self._variables:
            self._restore_variables(variables)
        if sys.path != self._path:
            sys.path[:] = self._path
        if sys.argv != self._argv:
            sys.argv[:] = self._argv
        if warnings.filters != self._filters:
            # No public way keeps their order; resetwarnings tells the interpreter's cache that they have changed.
            warnings.resetwarnings()
            warnings.filters[:] = self._filters  # type: ignore[index]
        if socket.getdefaulttimeout() != self._timeout:
            socket.setdefaulttimeout(self._timeout)
        if locale.setlocale(locale.LC_ALL) != self._locale:
            locale.setlocale(locale.LC_ALL, self._locale)
        if gc.get_threshold() != self._thresholds:
            gc.set_threshold(*self._thresholds)
        if self._decimal is not None:
            decimal: Any = sys.modules["decimal"]
            if _arithmetic(decimal.getcontext()) != _arithmetic(self._decimal):
                decimal.setcontext(self._decimal.copy())

    def _restore_variables(self, variables: dict[bytes, bytes]) -> None:
        zone = variables.get(b"TZ")
        for name in variables.keys() - self._variables.keys():
            del os.environb[name]
        for name, value in self._variables.items():
            if variables.get(name) != value:
                os.environb[name] = value
        if variables.get(b"TZ") != zone:
            time.tzset()


def _arithmetic(context: Any) -> tuple[Any, ...]:
    return context.prec, context.rounding, context.Emin, context.Emax, context.capitals, context.clamp, context.traps
