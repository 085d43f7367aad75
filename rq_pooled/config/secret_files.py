"""Files with secrets: signing keys, and passwords of the page."""

from __future__ import annotations

import os
import stat

from ..errors import ConfigurationError

#: Bytes of such a file at most.
MOST = 64 * 1024


def read_secret_file(path: str, source: str) -> str:
    """Return the text of a file, without the mark that some editors put before it.

    Args:
        path: of the file.
        source: how it is named where it cannot be used.

    Raises:
        ConfigurationError: it cannot be read, is no text, or is too long.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MOST + 1)
    except OSError as error:
        raise ConfigurationError(f"{source} cannot be read: {error.strerror}") from None
    if len(data) > MOST:
        raise ConfigurationError(f"{source} has more than {MOST} bytes: write only secrets into it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{source} cannot be read: it is no UTF-8") from None


def exposure(path: str, source: str) -> str:
    """Return a warning where every user of this host may read the file, else ""."""
    real = os.path.realpath(path)
    above = real
    try:
        may_read = os.stat(real).st_mode & stat.S_IROTH
        while may_read and above != os.path.dirname(above):
            above = os.path.dirname(above)
            may_read = os.stat(above).st_mode & stat.S_IXOTH
    except OSError:
        return ""
    if not may_read:
        return ""
    mode = stat.S_IMODE(os.stat(real).st_mode)
    return (
        f"{source} can be read by every user of this host (mode {mode:04o}): chmod o-r it, or give its mount mode 0440"
    )
