"""The Lua scripts tell how they are called."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import rq_pooled

SCRIPTS = Path(rq_pooled.__file__).parent / "store" / "lua"


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.lua")), ids=lambda path: path.name)
def test_script_header_names_the_keys_it_uses(path: Path) -> None:
    """A script's header says KEYS, ARGV and what it returns, and no key is used that the header does not list."""
    text = path.read_text()
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("--"))
    body = re.sub(r"--.*", "", text)
    for word in ("KEYS", "returns"):
        assert word in header, f"the header does not tell {word}"
    if "ARGV" in body:
        assert "ARGV" in header
    listed = {int(number) for number in re.findall(r"KEYS\[(\d+)", header)}
    used = {int(number) for number in re.findall(r"KEYS\[(\d+)\]", body)}
    any_number = re.search(r"KEYS\[\d+\.\.", header) is not None
    assert any_number or used <= listed
    if "KEYS" not in body:
        assert not listed or any_number
