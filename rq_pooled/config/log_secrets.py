"""What lines that RQ logs in a horse are not to show: arguments that DESCRIBE hides, and passwords in webhooks."""

from __future__ import annotations

import logging

from ..redaction import LEFT_OUT
from .describing import current
from .secrets import scrub


class _WithoutArguments(logging.Filter):
    """Leaves a job's arguments out of a record's extra attributes, where RQ's error of a failed job has them."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; let it pass."""
        record.__dict__.update({name: LEFT_OUT for name in ("arguments", "kwargs") if name in record.__dict__})
        return True


class _WithoutPasswords(logging.Filter):
    """Scrubs the addresses in a record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; let it pass."""
        if isinstance(record.args, tuple):
            record.args = tuple(scrub(one) if isinstance(one, str) and "://" in one else one for one in record.args)
        return True


def keep_secrets() -> None:
    """Have RQ's loggers show neither; to be called once in a process."""
    for name in ("rq.job", "rq.webhook"):
        logging.getLogger(name).addFilter(_WithoutPasswords())
    if current() is not None:
        # Formatters of JSON print all attributes of a record.
        logging.getLogger("rq.worker").addFilter(_WithoutArguments())
