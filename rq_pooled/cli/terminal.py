"""The screen of ``rq-pooled top``: drawn anew in place, with keys that need no Enter."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ..foreign import printable

#: Cursor home; erase to the end of the line; erase below; the other screen, and the cursor, on and off.
_HOME, _LINE_END, _BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_BOLD, _RED, _YELLOW, _PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[33m", "\x1b[0m"


def draw(lines: Sequence[str], width: int, height: int) -> None:
    """Write a screen over the last one, without flicker and without a line break at its end, which would scroll."""
    shown = []
    for i, line in enumerate(lines[:height]):
        text = printable(line[:width])
        style = _BOLD if i == 0 or text.startswith(("QUEUE ", "PROCESS ", "OTHER ")) else ""
        if text.startswith("The server is away") or ") stop" in text[:60]:
            style = _RED
        elif ") warn" in text[:60]:
            style = _YELLOW
        shown.append(f"{style}{text}{_PLAIN if style else ''}{_LINE_END}")
    sys.stdout.write(_HOME + "\r\n".join(shown) + _BELOW)
    sys.stdout.flush()


def size() -> os.terminal_size:
    """Return the terminal's size now; COLUMNS and LINES, which shutil believes first, do not follow a resize."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):  # no terminal
        size = os.terminal_size((0, 0))
    return size if all(size) else shutil.get_terminal_size()  # a serial line, or a container's, has no size


@contextlib.contextmanager
def terminal() -> Iterator[Any]:
    """Use the other screen, and keys without Enter, for the length of the block; give a wait that tells of ``q``."""
    import termios
    import tty

    def end(signum: int, frame: Any) -> None:
        sys.exit(128 + signum)

    # A signal that ends it leaves the terminal as it was.
    handlers = {signum: signal.signal(signum, end) for signum in (signal.SIGTERM, signal.SIGHUP)}
    keys = sys.stdin.fileno() if sys.stdin and sys.stdin.isatty() else None  # closed: no stdin
    before = termios.tcgetattr(keys) if keys is not None else None

    def wait(timeout: float) -> bool:
        if keys is None:
            time.sleep(timeout)
            return False
        over = time.monotonic() + timeout
        while (left := over - time.monotonic()) > 0:
            if select.select([keys], [], [], left)[0]:
                key = sys.stdin.read(1)
                if key in ("q", "Q", ""):
                    return True
        return False

    try:
        if keys is not None:
            tty.setcbreak(keys)
        sys.stdout.write(_ENTER)
        yield wait
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        if keys is not None and before is not None:
            termios.tcsetattr(keys, termios.TCSADRAIN, before)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
