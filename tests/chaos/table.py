"""The table of faults in docs/reliability.md, between two markers; rows that were not measured anew are kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from typing import Any

from support import ROOT

from rq_pooled.embedded import find_server

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin, written by `make reliability` -->", "<!-- faults: end -->"
_ROW = re.compile(r"^\| <!-- ([\w-]+) --> (.*?) \| (.*?) \| (.*?) \|$", re.MULTILINE)


def write(results: Sequence[dict[str, Any]], order: Sequence[str]) -> None:
    """Put the results into the page, in this order."""
    page = PAGE.read_text()
    rows = {name: {"fault": fault, "stock": stock, "ours": ours} for name, fault, stock, ours in _ROW.findall(page)}
    for result in results:
        row = rows.setdefault(result["name"], {"stock": "not measured", "ours": "not measured"})
        row["fault"] = result["fault"]
        row[result["contender"]] = " ".join(result["text"].replace("|", "/").split())
    head, _, rest = page.partition(BEGIN)
    tail = rest.partition(END)[2]
    server = find_server().rpartition("/")[2]
    lines = [
        BEGIN,
        "",
        f"Measured on {date.today()} with rq {version('rq')}, redis-py {version('redis')}, {server}.",
        "",
        "| fault | stock RQ | rq_pooled |",
        "|---|---|---|",
        *(
            f"| <!-- {name} --> {rows[name]['fault']} | {rows[name]['stock']} | {rows[name]['ours']} |"
            for name in order
            if name in rows
        ),
        "",
        END,
    ]
    PAGE.write_text(head + "\n".join(lines) + tail)
