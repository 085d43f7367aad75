"""Test modules stand alone: what several of them need is in tests/support."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

from support import TESTS

FILES = sorted(path for path in TESTS.rglob("*.py") if path.name != "__init__.py")
MODULES = {path.stem for path in FILES if path.name.startswith("test_")}


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.rpartition(".")[2] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").rpartition(".")[2], *(alias.name for alias in node.names)}
    return found


def test_no_module_imports_a_test_module() -> None:
    """A module of the tests imports from tests/support, and never from a test module."""
    assert [(str(path.relative_to(TESTS)), taken) for path in FILES if (taken := _imported(path) & MODULES)] == []


def test_names_are_unique() -> None:
    """pytest imports each test module by the name of its file: two of one name cannot be told apart."""
    names = Counter(path.name for path in FILES if "chaos" not in path.parts or path.name.startswith("test_"))
    assert [name for name, count in names.items() if count > 1] == []
