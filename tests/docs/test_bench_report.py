"""What writes tables of benchmarks into the docs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.common import Table


def test_a_table_replaces_the_one_before_and_words_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table stands below its heading, once however often it is written, and an empty line parts it from words."""
    page = tmp_path / "page.md"
    page.write_text("# A\n\n### One\n\nWords.\n\n### Two\n\n### Three\n")
    monkeypatch.setattr(report, "PAGES", [page])
    monkeypatch.setattr(report, "PICTURES", tmp_path)
    for rate in ("1", "2,000"):
        for title in ("One", "Two", "Three"):
            report.write(Table(title, ["jobs", "jobs/s"], [("ours", rate)], plot="jobs/s"), "a machine, by `x`")
    rows = "| jobs | jobs/s |\n|------|-------:|\n| ours |  2,000 |\n"
    part = "### {}\n\n_a machine, by `x`_\n\n![{}](pictures/bench-{}.svg)\n\n" + rows
    one, two, three = (part.format(title, title, title.lower()) for title in ("One", "Two", "Three"))
    assert page.read_text() == f"# A\n\n{one}\nWords.\n\n{two}\n{three}"
    assert "2,000" in (tmp_path / "bench-one.svg").read_text()
    with pytest.raises(SystemExit, match="no heading"):
        report.write(Table("Four", [], []), "a machine")
