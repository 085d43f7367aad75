"""The pages of reference say of the code what it is."""

from __future__ import annotations

import re
from importlib import import_module

import pytest
from pages import SHELL, blocks, pages
from support import ROOT

import rq_pooled
from rq_pooled.config import Settings

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="rq_pooled is installed here, without its docs")
#: Words of Redis, which the code only looks for.
THEIRS = {"max number of clients reached"}


def test_each_setting_stands_in_one_group() -> None:
    """The groups of the reference hold each setting once, and no other."""
    page = (ROOT / "docs" / "reference.md").read_text().split("## All settings by group")[1].split("\n## ")[0]
    named = re.findall(r"`([A-Z_]+)`", page)
    assert sorted(named) == sorted(name.upper() for name in Settings.__dataclass_fields__)


def test_errors_of_the_troubleshooting_page_exist() -> None:
    """Each text that the troubleshooting page begins with is one that the code says."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text().split("\n## ")[0]
    texts = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    # As it is said: without the quotes and breaks between the parts of a long text.
    code = " ".join(path.read_text() for path in (ROOT / "rq_pooled").rglob("*.py"))
    said = re.sub(r'"\s*f?"', "", code)
    assert len(texts) > 15
    assert [text for text in texts if text not in said and text not in THEIRS] == []


def test_the_api_page_names_what_is_public() -> None:
    """The page of the API shows each of the ten names, and each object that it shows exists."""
    shown = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    for path in shown:
        module, _, name = path.rpartition(".")
        assert hasattr(import_module(module), name), path
    assert set(rq_pooled.__all__) <= {path.rpartition(".")[2] for path in shown}


def test_each_page_stands_in_the_site() -> None:
    """A reader of the site finds each page of docs/ by its navigation."""
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    assert sorted(re.findall(r"([\w-]+\.md)$", navigation, re.MULTILINE)) == sorted(
        path.name for path in (ROOT / "docs").glob("*.md")
    )


def test_few_blocks_are_not_run() -> None:
    """Most blocks that can run do; each other one says why not."""
    runnable = [block for page in pages() for block in blocks(page) if block.language in ("python", *SHELL)]
    assert sum(bool(block.not_run) for block in runnable) < len(runnable) / 2
