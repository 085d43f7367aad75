"""The blocks of a page in Markdown, and what the comment above each says about running it.

| comment above a block | the block |
|---|---|
| none | runs as it is printed |
| `<!-- not run: reason -->` | does not run |
| `<!-- runs until: text -->` | runs on after it has printed the text; SIGTERM ends it with the page |
| `<!-- prints: text -->` | has to print the text, which the prose quotes |
| `<!-- first: code -->` | runs after the code, which names what the prose has introduced |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from support import ROOT

FENCE = re.compile(r"^( *)(`{3,})([\w+-]*)[^\n`]*\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!-- (not run|runs until|first|prints): (.*?) -->", re.DOTALL)
ABOVE = re.compile(r"(?:<!--(?:(?!-->).)*-->\s*)+\Z", re.DOTALL)
SHELL = ("", "sh", "bash", "console", "shell")


def pages() -> list[Path]:
    """Return all pages whose blocks a reader may try."""
    folders = [*sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGES.md", *folders]


@dataclass(frozen=True)
class Block:
    """One block: its language, the line that it begins at, and its comment."""

    language: str
    line: int
    text: str
    not_run: str = ""
    until: str = ""
    first: str = ""
    prints: str = ""

    @property
    def shell(self) -> bool:
        return self.language in SHELL

    def steps(self) -> list[tuple[str, str | None]]:
        """Return what runs, each with the output that the page shows, or None if it shows none."""
        if not self.shell or not self.text.lstrip().startswith("$ "):
            return [(self.text, self.prints or None)]
        steps: list[tuple[str, str | None]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], ""))
            else:
                command, shown = steps[-1]
                steps[-1] = (command, f"{shown}{line}\n")
        return steps


def blocks(page: Path) -> list[Block]:
    """Return a page's blocks in order."""
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        indent = len(match[1])
        body = "".join(line[indent:] if line.strip() else line for line in match[4].splitlines(True))
        above = ABOVE.search(text, 0, match.start())
        said = {word.replace(" ", "_"): value for word, value in COMMENT.findall(above[0])} if above else {}
        said["until"] = said.pop("runs_until", "")
        found.append(Block(match[3].lower(), text.count("\n", 0, match.start()) + 1, body, **said))
    return found


def as_shown(shown: str, printed: str) -> bool:
    """Tell whether a program printed what a page shows.

    Numbers, times, ids and widths of columns are those of a moment. A `…` stands for any text, and `...` for any lines.
    """
    pattern = re.escape(_moment(shown)).replace("…", ".*?").replace(re.escape("..."), ".*?")
    return re.fullmatch(pattern, _moment(printed), re.DOTALL) is not None


def _moment(text: str) -> str:
    text = re.sub(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b|\b[0-9a-f]{32}\b", "ID", text)
    text = re.sub(r"\d[\d.,:]*(?:T[\d:.]+Z?)?", "N", text)
    return re.sub(r"\s+", " ", text).strip()
