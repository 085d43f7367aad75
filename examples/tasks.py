"""The work of the example: plain functions, as RQ wants them. A worker imports this module by its name."""

from __future__ import annotations

import hashlib
from pathlib import Path


def checksum(path: str) -> str:
    """Return the SHA-256 of a file. Raises OSError where it cannot be read: the job then fails."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


if __name__ == "__main__":
    print(checksum(__file__))
