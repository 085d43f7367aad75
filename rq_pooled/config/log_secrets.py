"""What lines that RQ logs in a horse are not to show: arguments that DESCRIBE hides, and passwords in webhooks."""

from __future__ import annotations

import logging
import re

from ..redaction import LEFT_OUT
from .describing import current
from .secrets import scrub, scrub_url

_HOST = re.compile(r"https?://[^/?#\s]*(?=[/?#]|$)", re.IGNORECASE)


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
            hide = _host_of if "webhook" in str(record.msg) else scrub
            record.args = tuple(hide(one) if isinstance(one, str) else one for one in record.args)
        if record.exc_info and (error := record.exc_info[1]) is not None:
            record.exc_info = record.exc_text = None
            record.msg, record.args = f"{record.msg}: %s", (*(record.args or ()), _reason(error))
        return True


def _host_of(text: str) -> str:
    """Return an address's scheme and host: a webhook's path may be its secret, and any parameter of it."""
    if "://" not in text:
        return text
    # As urllib does.
    found = _HOST.match(text.strip())
    return f"{scrub_url(found[0])}/***" if found else "***"


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
