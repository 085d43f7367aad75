"""What lines that RQ logs in a horse are not to show: arguments that DESCRIBE hides, and passwords in webhooks."""

from __future__ import annotations

import logging
import re

from ..redaction import LEFT_OUT
from .describing import current
from .secrets import is_scheme, scrub, scrub_url

_HOST = re.compile(r"(https?://[^/?#]*).+", re.IGNORECASE | re.DOTALL)


class _WithoutArguments(logging.Filter):
    """Leaves a job's arguments out of a record's extra attributes, where RQ's error of a failed job has them."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; let it pass."""
        record.__dict__.update({name: LEFT_OUT for name in ("arguments", "kwargs") if name in record.__dict__})
        return True


class _WithoutPasswords(logging.Filter):
    """Scrubs the addresses in a record. An error in it is named without its text, which has parts of an address."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; let it pass."""
        if isinstance(record.args, tuple):
            record.args = tuple(_scrubbed(one) if isinstance(one, str) else one for one in record.args)
        if record.exc_info and (error := record.exc_info[1]) is not None:
            record.exc_info = record.exc_text = None
            record.msg, record.args = f"{record.msg}: %s", (*(record.args or ()), _reason(error))
        return True


def _scrubbed(text: str) -> str:
    """Return an address's scheme and host: a webhook's path may be its secret, and any parameter of it."""
    scheme, colon, _ = text.partition("://")
    return text if not colon else _HOST.sub(r"\1/***", scrub_url(text)) if is_scheme(scheme) else scrub(text)


def _reason(error: BaseException) -> str:
    """Return what the system or the web server said, else the error's type."""
    said, name = getattr(error, "reason", error), type(error).__name__
    code = getattr(error, "code", None)
    if isinstance(code, int):
        return f"status {code}"
    return f"{name}: {said.strerror}" if isinstance(said, OSError) and said.strerror else name


def keep_secrets() -> None:
    """Have RQ's loggers show neither; to be called once in a process."""
    for name in ("rq.job", "rq.webhook"):
        logging.getLogger(name).addFilter(_WithoutPasswords())
    if current() is not None:
        # Formatters of JSON print all attributes of a record.
        logging.getLogger("rq.worker").addFilter(_WithoutArguments())
