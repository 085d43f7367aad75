"""Writes docs/pictures/demo.svg: a recording of ``rq-pooled demo`` as it runs in a terminal.

    make recording

pyte, a terminal emulator, reads what the program prints. The SVG shows each screen as long as it stood, by CSS,
and then begins again. So the picture needs no JavaScript, and GitHub and PyPI show it.
"""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from html import escape
from itertools import pairwise
from pathlib import Path

import pyte

PROMPT = "$ rq-pooled demo"
COLUMNS, ROWS = 80, 15
#: The last screen stands this long before the recording begins again, in seconds.
END = 8.0
CELL, LINE, EDGE = 8.4, 18, 14

STYLE = """svg{background:#16181d}text{font:14px ui-monospace,Menlo,Consolas,monospace;fill:#d7dae0;white-space:pre}
g{visibility:hidden;animation:show %(total).2fs steps(1) infinite}"""


def screens(command: list[str]) -> list[tuple[float, list[str]]]:
    """Run a command in a terminal; return (seconds since the start, lines) of each screen that it showed."""
    terminal = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(terminal)
    stream.feed(PROMPT.encode() + b"\r\n")
    found = [(0.0, list(terminal.display))]
    started = time.monotonic()
    pid, master = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", COLUMNS=str(COLUMNS), LINES=str(ROWS))
        os.execv(command[0], command)
    while True:
        # A screen is what has arrived until nothing more does for a moment.
        ready, _, _ = select.select([master], [], [], 60)
        try:
            data = os.read(master, 65536) if ready else b""
        except OSError:
            data = b""
        if not data:
            break
        stream.feed(data)
        lines = list(terminal.display)
        if lines != found[-1][1] and not select.select([master], [], [], 0.1)[0]:
            found.append((time.monotonic() - started, lines))
    os.close(master)
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit(f"the demo ended with {os.waitstatus_to_exitcode(status)}")
    return [*found, (time.monotonic() - started, list(terminal.display))]


def svg(found: list[tuple[float, list[str]]]) -> str:
    """Return the recording as one animated SVG; its first frame of a still picture is the last screen."""
    total = found[-1][0] + END
    width, height = COLUMNS * CELL + 2 * EDGE, ROWS * LINE + 2 * EDGE
    style, groups = [STYLE % {"total": total}], []
    ends = [at for at, _ in found[1:]] + [total]
    for number, ((begin, lines), end) in enumerate(zip(found, ends, strict=True)):
        first, last = 100 * begin / total, 100 * end / total
        shown = f"{first:.3f}%{{visibility:visible}}{last:.3f}%{{visibility:hidden}}"
        style.append(f"@keyframes f{number}{{0%{{visibility:hidden}}{shown}}}#f{number}{{animation-name:f{number}}}")
        text = [
            f'<text x="{EDGE}" y="{EDGE + (row + 1) * LINE - 5}">{escape(line.rstrip())}</text>'
            for row, line in enumerate(lines)
            if line.strip()
        ]
        groups.append(f'<g id="f{number}">{"".join(text)}</g>')
    still = "@media (prefers-reduced-motion:reduce){g{animation:none}g:last-of-type{visibility:visible}}"
    size = f'viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}"'
    title = "<title>rq-pooled demo: the same jobs with rq_pooled and with stock RQ</title>"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">{title}'
    return f"{head}<style>{''.join(style)}{still}</style>{''.join(groups)}</svg>\n"


def main() -> None:
    """Record the demo of this environment."""
    found = screens([str(Path(sys.executable).parent / "rq-pooled"), "demo"])
    # Ten screens a second are enough for an eye.
    kept = [found[0]]
    for (at, lines), (until, _) in pairwise(found[1:]):
        if until - kept[-1][0] >= 0.1 and lines != kept[-1][1]:
            kept.append((at, lines))
    kept.append(found[-1])
    path = Path(__file__).with_name("demo.svg")
    path.write_text(svg(kept))
    print(f"{path}: {len(kept)} screens, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
