"""Writes the tables and plots of docs/benchmarks.md and docs/scaling.md, each below the heading that is its title.

The plots are bars drawn by hand: a few lines of SVG follow the reader's light or dark theme, and need no library.
"""

from __future__ import annotations

import re
from html import escape

from .common import ROOT, Table

PAGES = [ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "scaling.md"]
PICTURES = ROOT / "docs" / "pictures"
_STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#333}rect{fill:#9aa5b1}.ours{fill:#2f6fde}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>"
)
_NAME, _BAR, _ROW = 250, 360, 26


def write(table: Table, where: str) -> None:
    """Put a table, and its plot if it has one, below its heading.

    Args:
        where: machine and load, which stand above the table and in the plot.

    Raises:
        SystemExit: no page has a heading of that name.
    """
    heading = f"### {table.title}\n"
    page = next((one for one in PAGES if heading in one.read_text()), None)
    if page is None:
        raise SystemExit(f"docs/benchmarks.md has no heading '### {table.title}': add it where its table belongs")
    text = page.read_text()
    begin = text.index(heading) + len(heading)
    rest = text[begin:]
    # What an earlier run wrote, up to the last line of its table; words that a person added below stay.
    written = re.match(r"\n(?:_[^\n]*_\n\n)?(?:!\[[^\n]*\n\n)?(?:\|[^\n]*\n)*", rest)
    remaining = rest[written.end() :] if written else rest
    picture = f"![{table.title}](pictures/{_picture(table, where)})\n\n" if table.plot else ""
    # Without an empty line, what follows would be a row of the table.
    after = remaining.lstrip("\n")
    page.write_text(text[:begin] + f"\n_{where}_\n\n{picture}{table.markdown()}" + (f"\n{after}" if after else ""))


def _picture(table: Table, where: str) -> str:
    column = list(table.header).index(table.plot)
    bars = [(row[0], float(row[column].replace(",", ""))) for row in table.rows]
    longest = max(value for _, value in bars) or 1.0
    height = _ROW * len(bars) + 62
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height}" role="img">{_STYLE}']
    parts.append(f'<text x="0" y="16" font-weight="bold">{escape(table.title)}: {escape(table.plot)}</text>')
    for i, (name, value) in enumerate(bars):
        top = 28 + _ROW * i
        ours = ' class="ours"' if name.startswith("rq_pooled") else ""
        width = _BAR * value / longest
        parts.append(f'<text x="0" y="{top + 15}">{escape(name)}</text>')
        parts.append(f'<rect{ours} x="{_NAME}" y="{top}" width="{width:.0f}" height="20" rx="2"/>')
        parts.append(f'<text x="{_NAME + width + 6:.0f}" y="{top + 15}">{value:,g}</text>')
    machine = escape(where.partition(", by ")[0])
    parts.append(f'<text x="0" y="{height - 10}" style="font-size:10px">{machine}</text></svg>\n')
    name = f"bench-{table.title.lower().replace(' ', '-')}.svg"
    (PICTURES / name).write_text("\n".join(parts))
    return name
