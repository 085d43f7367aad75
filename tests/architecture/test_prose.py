"""Words that make a sentence hard to read stay out of the code and the docs: name who it is, or use the passive."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import rq_pooled

PACKAGE = Path(rq_pooled.__file__).parent
DOCS = PACKAGE.parent / "docs"
WORDS = re.compile(r"\b(whoever|somebody|nobody|somehow)\b", re.IGNORECASE)
SUFFIXES = {".py", ".lua", ".html", ".js", ".css"}


def found(path: Path) -> list[str]:
    """Return the lines of a file with one of the words; in code that is prose or a name, and neither has them."""
    lines = enumerate(path.read_text().splitlines(), 1)
    return [f"{path.name}:{number}: {line.strip()}" for number, line in lines if WORDS.search(line)]


def test_the_code_names_who_does_what() -> None:
    """Docstrings, comments and messages name who does what."""
    files = sorted(path for path in PACKAGE.rglob("*") if path.suffix in SUFFIXES)
    assert len(files) > 200
    assert [line for path in files for line in found(path)] == []


@pytest.mark.skipif(not DOCS.is_dir(), reason="rq_pooled is installed here, without its docs")
def test_the_docs_name_who_does_what() -> None:
    """The docs name who does what."""
    files = [*sorted(DOCS.glob("*.*")), *sorted(DOCS.parent.glob("*.md"))]
    assert [line for path in files for line in found(path)] == []
