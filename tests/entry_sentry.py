"""Starts Sentry's SDK with its integration for RQ; each event becomes a line of a file instead of a request."""

from __future__ import annotations

import json
import os
from typing import Any

import sentry_sdk
from sentry_sdk.integrations.rq import RqIntegration
from sentry_sdk.transport import Transport


class FileTransport(Transport):
    """Writes what would be sent."""

    def capture_envelope(self, envelope: Any) -> None:
        """Append the event in it, if there is one."""
        event = envelope.get_event()
        if event is not None:
            line = {"type": [value["type"] for value in event.get("exception", {}).get("values", [])],
                    "job": event.get("extra", {}).get("rq-job", {}).get("job_id"),
                    "text": str(event.get("logentry", {}).get("message", ""))}  # fmt: skip
            with open(os.environ["ENTRY_SENTRY_FILE"], "a") as file:
                file.write(json.dumps(line) + "\n")


sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=FileTransport, integrations=[RqIntegration()])
