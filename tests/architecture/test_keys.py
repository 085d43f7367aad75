"""The keys in Redis have one module that names them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import rq_pooled
from rq_pooled.store import keys

PACKAGE = Path(rq_pooled.__file__).parent
PREFIXES = ("rq_pooled:", "rq:")
#: What names none: fields of a job's meta, and a text that is encoded to try an encoding. rq_api.py stands above the
#: store, and holds what only some version of RQ has: the keys of its rate limits.
EXEMPT = {"retry/attempts.py", "retry/backoff.py", "connection/url_parameters.py", "rq_api.py", "signing/job.py"}
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def literals(path: str) -> list[str]:
    """Return the literals of a module that begin as a key does, those in f-strings among them."""
    found = []
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
            value = node.value if isinstance(node.value, str) else node.value.decode(errors="replace")
            if value.startswith(PREFIXES):
                found.append(f"{path}:{node.lineno}: {value}")
    return found


@pytest.mark.parametrize("path", sorted({*MODULES} - EXEMPT - {"store/keys.py"}))
def test_only_one_module_writes_keys(path: str) -> None:
    """A key is named by store/keys.py, so that all that stands in Redis is found in one place."""
    assert literals(path) == []


@pytest.mark.parametrize("path", sorted(EXEMPT))
def test_what_is_exempt_has_a_reason_still(path: str) -> None:
    """A module that writes no such literal any more is not exempt."""
    assert literals(path) != []


def test_all_keys_are_ours_or_rqs() -> None:
    """Every name in store/keys.py begins as ours or as RQ's, so that other data in the database is left alone."""
    constants = [value for name, value in vars(keys).items() if name.isupper()]
    functions = [value for name, value in vars(keys).items() if name.endswith(("_key", "_keys", "_channel"))]
    named = [function(*["x"] * function.__code__.co_argcount) for function in functions]
    flat = [one for value in [*constants, *named] for one in ([value] if isinstance(value, str) else value)]
    assert len(flat) > 40 and all(one.startswith(PREFIXES) for one in flat)
