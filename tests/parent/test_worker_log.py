"""The parent's log: each line begins with a name."""

from __future__ import annotations

import logging

import pytest

from rq_pooled.log_lines import WorkerLog


def test_a_line_begins_with_the_name_of_who_it_is_about(caplog: pytest.LogCaptureFixture) -> None:
    """A line names the worker, or the slot that it is about, whatever characters are in the name; its record shows
    the place that logged it, and the template that monitors group by.
    """
    log = WorkerLog(logging.getLogger("rq.worker"), "100%d")
    log.warning("starts")
    log.error("job %s failed", "a", worker="100%d-1")
    assert caplog.messages == ["Worker 100%d: starts", "Worker 100%d-1: job a failed"]
    assert {record.filename for record in caplog.records} == {"test_worker_log.py"}
    assert caplog.records[1].msg == "Worker %s: job %s failed"
