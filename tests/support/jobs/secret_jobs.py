"""Jobs whose arguments are not for everybody, and functions that say what is shown of them."""

from __future__ import annotations

import json
import logging
from typing import Any

from rq_pooled.redaction import Call

SECRET = "hunter2"


def pay(_order: int, _card_token: str, *_rest: Any, **_more: Any) -> None:
    pass


def refuse(_order: int, password: str) -> None:
    raise ValueError("refused")


class Json(logging.Formatter):
    """Prints all attributes of a record, as formatters of JSON do."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({**vars(record), "message": record.getMessage()}, default=repr)


#: A settings module's logging, for ``rq worker -c``.
DICT_CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "secret_jobs.Json"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "json"}},
    "loggers": {"rq.worker": {"handlers": ["console"], "level": "INFO", "propagate": False}},
}


def only_order(call: Call) -> str:
    """Show the number of the order, where it is known."""
    return f"{call.function} of {(call.kwargs or {}).get('_order')}"


def broken(call: Call) -> str:
    """Fail with a text that holds the secret."""
    raise KeyError(f"{call.args} {call.kwargs} {call.text}")


def no_text(call: Call) -> Any:
    return call.kwargs


def leaving(call: Call) -> str:
    raise SystemExit(str(call.kwargs))
