"""Single faults, as docs/reliability.md shows them: what its right column promises holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos import table
from chaos.faults import FAULTS, run_one
from chaos.scene import JOBS, OURS


@pytest.fixture(autouse=True)
def _short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter ones than those of the table: what follows their end is the same."""
    for name, value in {"HEARTBEAT_INTERVAL": 0.5, "HEARTBEAT_TTL": 2, "STALLED_INTERVAL": 0.5}.items():
        monkeypatch.setitem(OURS, name, value)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("name", ["restart", "readonly", "oom", "cut"])
def test_an_outage_costs_no_result_and_no_second_run(_server_available: None, name: str, tmp_path: Path) -> None:
    """Jobs that end while the server is away are recorded when it is back; none runs again; the worker lives."""
    result = run_one(name, "ours", tmp_path)
    assert (result["ran"], result["recorded"], result["failed"], result["again"]) == (JOBS, JOBS, 0, 0), result["text"]
    assert result["workers"] == ["alive"] and result["works"], result["text"]


@pytest.mark.timeout(150)
@pytest.mark.parametrize("name", ["kill-container", "popped", "popped-two-queues", "deploy"])
def test_the_job_of_a_worker_that_dies_runs_elsewhere(_server_available: None, name: str, tmp_path: Path) -> None:
    """Wherever a worker dies or is stopped, its job ends well under another one."""
    result = run_one(name, "ours", tmp_path)
    assert (result["ran"], result["recorded"], result["failed"]) == (1, 1, 0), result["text"]
    assert result["works"], result["text"]


@pytest.mark.timeout(150)
def test_a_worker_outlives_the_loss_of_everything(_server_available: None, tmp_path: Path) -> None:
    """After FLUSHALL the worker registers again and runs what is enqueued then."""
    result = run_one("flushall", "ours", tmp_path)
    assert result["workers"] == ["alive"] and result["works"], result["text"]


def test_the_table_keeps_rows_that_were_not_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing one result changes its cell and no other, and text around the table stays."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\n{table.END}\nafter\n")
    monkeypatch.setattr(table, "PAGE", page)
    one = {"name": "cut", "contender": "stock", "fault": "all are cut", "text": "one"}
    table.write([one, {**one, "contender": "ours", "text": "two"}], list(FAULTS))
    table.write([{**one, "text": "three | four"}], list(FAULTS))
    text = page.read_text()
    assert "| <!-- cut --> all are cut | three / four | two |" in text
    assert text.startswith("before\n") and text.endswith("\nafter\n") and text.count("<!-- cut -->") == 1
