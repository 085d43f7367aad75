"""A program that prints what its process is, for a comparison of two ways to start one."""

from __future__ import annotations

import json
import locale
import os
import signal
import sys
import threading
import time
import warnings
from typing import Any


def describe() -> dict[str, Any]:
    """Return all that a program may look at, without ids and times."""
    main = sys.modules["__main__"]
    streams = [sys.stdin, sys.stdout, sys.stderr]
    return {
        "words": [
            sys.argv,
            sys.orig_argv,
            sys.executable,
            list(sys.warnoptions),
            [str(one) for one in warnings.filters],
        ],
        "path": sys.path,
        "main": [main.__name__, main.__file__, main.__spec__ is None],
        "folder": os.getcwd(),
        "variables": dict(os.environ),
        "zone": time.tzname,
        "locale": [locale.setlocale(locale.LC_ALL), sys.getfilesystemencoding()],
        "streams": [
            [one.name, one.encoding, one.errors, one.mode, one.line_buffering, type(one.buffer).__name__]
            for one in streams
        ],
        "written at once": [getattr(one, "write_through", None) for one in streams[1:]],
        "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
        "signals": [str(signal.getsignal(signum)) for signum in sorted(signal.valid_signals())],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "leads": [os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid()],
        "threads": [[one.name for one in threading.enumerate()], threading.main_thread() is threading.current_thread()],
    }


if __name__ == "__main__":
    print(json.dumps(describe()))
    sys.exit(3)
