"""Starts Datadog's tracer with its integration for RQ; each span becomes a line of a file instead of a request."""

from __future__ import annotations

import json
import os
from typing import Any

for name in ("DD_INSTRUMENTATION_TELEMETRY_ENABLED", "DD_REMOTE_CONFIGURATION_ENABLED", "DD_TRACE_STARTUP_LOGS"):
    os.environ[name] = "false"

import ddtrace
import rq
from ddtrace.trace import TraceFilter, tracer


class FileFilter(TraceFilter):
    """Writes what would be sent, and sends nothing."""

    def process_trace(self, trace: list[Any]) -> None:
        """Append the spans of one trace."""
        with open(os.environ["ENTRY_SPANS"], "a") as file:
            for span in trace:
                tags = {
                    key: span.get_tag(key) for key in ("job.id", "job.status", "job.origin", "queue.name", "error.type")
                }
                line = {
                    "name": span.name,
                    "resource": span.resource,
                    "error": span.error,
                    "root": span.parent_id in (None, 0),
                }
                file.write(json.dumps({**line, **{key: value for key, value in tags.items() if value}}) + "\n")


tracer.configure(trace_processors=[FileFilter()])
ddtrace.patch(rq=True)


class Stock(rq.Worker):
    """RQ's own worker, traced."""
