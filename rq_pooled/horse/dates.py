"""Dates as RQ writes and reads them, without strftime and strptime, which take a tenth of a short job's time.

``rq.utils`` has the functions that say what is right; these give the same for what RQ itself writes, and leave all else
to them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import rq.job
from rq.utils import str_to_date, utcformat

#: Length of a date up to its microseconds. What follows is Z as RQ writes it, and +00:00 as Python does.
_LENGTH = len("2026-11-21T09:42:00.000000")


def write_date(date: datetime) -> str:
    """Return a date as ``rq.utils.utcformat`` does."""
    # Subclasses of datetime may write themselves in other ways.
    if type(date) is datetime and date.year >= 1000:
        return date.isoformat(timespec="microseconds")[:_LENGTH] + "Z"
    return utcformat(date)


def read_date(text: Any) -> datetime:
    """Return a date as ``rq.utils.str_to_date`` does; raises what it raises."""
    if isinstance(text, bytes) and len(text) == _LENGTH + 1 and text[-1:] == b"Z":
        try:
            form = text[:-1].decode() + "+00:00"
            date = datetime.fromisoformat(form)
        except ValueError:
            return str_to_date(text)
        # datetime.fromisoformat takes more forms than RQ does.
        if date.isoformat(timespec="microseconds") == form:
            return date
    return str_to_date(text)


def use_in_jobs() -> None:
    """Have ``rq.job.Job`` of this process read and write its dates with these; for a horse, whose process is ours."""
    for name, ours in (("str_to_date", read_date), ("utcformat", write_date)):
        # Where it is missing, this version of RQ has another way.
        if hasattr(rq.job, name):
            setattr(rq.job, name, ours)
