"""Starts Sentry's SDK with its integration for RQ; each event becomes a line of a file instead of a request.

With ENTRY_SPANS it traces, too: each transaction becomes a line of that file.
"""

from __future__ import annotations

import json
import os
from typing import Any

import rq
import sentry_sdk
from sentry_sdk.integrations.rq import RqIntegration
from sentry_sdk.transport import Transport

SPANS = os.environ.get("ENTRY_SPANS")


class FileTransport(Transport):
    """Writes what would be sent."""

    def capture_envelope(self, envelope: Any) -> None:
        """Append the event or the transaction in it, if there is one."""
        transaction = envelope.get_transaction_event()
        if transaction is not None and SPANS:
            context = transaction["contexts"]["trace"]
            line = {
                "name": transaction["transaction"],
                "job": transaction.get("extra", {}).get("rq-job", {}).get("job_id"),
                "trace": context["trace_id"],
                "root": context.get("parent_span_id") is None,
                "op": context.get("op"),
                "status": context.get("status"),
                "queue": context.get("data", {}).get("messaging.destination.name"),
            }
            with open(SPANS, "a") as file:
                file.write(json.dumps(line) + "\n")
        event = envelope.get_event()
        if event is not None:
            line = {"type": [value["type"] for value in event.get("exception", {}).get("values", [])],
                    "job": event.get("extra", {}).get("rq-job", {}).get("job_id"),
                    "text": str(event.get("logentry", {}).get("message", ""))}  # fmt: skip
            with open(os.environ.get("ENTRY_SENTRY_FILE", os.devnull), "a") as file:
                file.write(json.dumps(line) + "\n")


sentry_sdk.init(
    dsn="http://key@127.0.0.1:9/1",
    transport=FileTransport,
    integrations=[RqIntegration()],
    traces_sample_rate=1.0 if SPANS else None,
)


class Stock(rq.Worker):
    """RQ's own worker, traced."""
