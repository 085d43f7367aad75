"""A worker that looks at intermediate lists every half second, and calls left what is there for a second."""

from __future__ import annotations

from rq_pooled import Worker  # noqa: F401 - by name, see running_worker
from rq_pooled.parent import cleaner

cleaner.INTERMEDIATE_INTERVAL, cleaner.INTERMEDIATE_AGE = 0.5, 1.0
