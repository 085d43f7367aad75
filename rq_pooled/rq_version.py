"""Which versions of RQ this package works with.

Its worker takes the place of much that RQ does inside, and RQ changes that freely. `pip` keeps RQ below the next major
version when it installs the two together; `pip install -U rq` later only prints that it does not. A worker on RQ 3 would
fail every job that it claims.
"""

from __future__ import annotations

import re

import rq.version

from .errors import RQUnsupported

#: The minor versions whose handlers the parity tests have seen; later ones of the same major version only get a warning.
TESTED = ("2.11", "2.12")


def check_rq() -> None:
    """Refuse an RQ with which jobs would be lost.

    Raises:
        RQUnsupported: another major version than the tested ones is installed.
    """
    version = rq.version.VERSION
    if _numbers(version)[0] != _numbers(TESTED[0])[0]:
        raise RQUnsupported(
            f"rq {version} is installed, and rq_pooled works with rq {' and '.join(TESTED)}: pip install 'rq<3'"
        )


def is_tested() -> bool:
    """Tell whether the tests have seen this version of RQ."""
    return _numbers(rq.version.VERSION)[:2] in [_numbers(tested) for tested in TESTED]


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
