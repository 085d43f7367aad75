"""Words that make a sentence hard to read stay out of the code and the docs: name who it is, or use the passive."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import rq_pooled

PACKAGE = Path(rq_pooled.__file__).parent
DOCS = PACKAGE.parent / "docs"
WORDS = re.compile(r"\b(whoever|somebody|nobody|somehow)\b", re.IGNORECASE)
#: Packages that are clean, and "" for the modules at the root; those that are not yet are to be added here.
CLEAN = ("", "config", "connection", "store", "monitoring", "flask", "cli", "pool", "capacity", "queue", "failed")
SUFFIXES = {".py", ".lua", ".html", ".js", ".css"}


def found(path: Path) -> list[str]:
    """Return the lines of a file with one of the words; in code that is prose or a name, and neither has them."""
    lines = enumerate(path.read_text().splitlines(), 1)
    return [f"{path.name}:{number}: {line.strip()}" for number, line in lines if WORDS.search(line)]


@pytest.mark.parametrize("package", CLEAN)
def test_clean_packages_stay_clean(package: str) -> None:
    """Docstrings, comments and messages of a clean package name who does what."""
    files = (PACKAGE / package).rglob("*") if package else PACKAGE.glob("*")
    assert [line for path in sorted(files) if path.suffix in SUFFIXES for line in found(path)] == []


@pytest.mark.skipif(not DOCS.is_dir(), reason="rq_pooled is installed here, without its docs")
def test_clean_docs_stay_clean() -> None:
    """The docs name who does what."""
    files = [*sorted(DOCS.glob("*.*")), *sorted(DOCS.parent.glob("*.md"))]
    assert [line for path in files for line in found(path)] == []
