"""The docs lead somewhere: every path that they name exists, and so does every file that they link to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import rq_pooled

PACKAGE = Path(rq_pooled.__file__).parent
ROOT = PACKAGE.parent
DOCS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "README.md"]
#: path/to/file.py, and path/to/folder/ in code quotes. What follows a scheme, a root or a variable is not ours.
FILE = re.compile(r"(?<![\w./:$~@-])(?:\.\./)*((?:[\w-]+/)+[\w.-]+\.(?:py|lua|md|yml|toml|cfg|html|js|css|svg))\b")
FOLDER = re.compile(r"`((?:[\w-]+/)+)`")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)")
#: A script alone, as in "see claim.lua".
SCRIPT = re.compile(r"(?<![\w/.-])\w+\.lua\b")

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="rq_pooled is installed here, without its docs")


def missing(text: str, beside: Path) -> list[str]:
    """Return what a text of a folder names that does not exist, relative to the repository or to rq_pooled."""
    named = [match for pattern in (FILE, FOLDER) for match in pattern.findall(text)]
    gone = [path for path in named if not any((folder / path).exists() for folder in (ROOT, PACKAGE, beside))]
    gone += [path for path in LINK.findall(text) if not (beside / path).exists()]
    scripts = {path.name for path in (PACKAGE / "store" / "lua").rglob("*.lua")}
    return gone + [name for name in SCRIPT.findall(text) if name not in scripts]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_paths_in_docs_exist(path: Path) -> None:
    """A reader finds each file, folder, script and page that the docs name."""
    assert missing(path.read_text(), path.parent) == []


def test_what_is_gone_is_found() -> None:
    """A file, a folder, a link and a script that do not exist are found; an address and a user's file are no paths."""
    there = (
        "`pool/pool.py`, rq_pooled/cli/main.py, `tests/chaos/`, claim.lua, [x](pool.md#a), https://a.b/c.py, ~/a/b.py"
    )
    assert missing(there, ROOT / "docs") == []
    gone = ["pool/resizing.py", "no/folder/", "no.md", "no.lua"]
    assert missing("(see pool/resizing.py), `no/folder/`, [x](no.md) and no.lua", ROOT / "docs") == gone
