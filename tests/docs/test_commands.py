"""Commands, settings and links in the README and the docs exist, also those that no test runs."""

from __future__ import annotations

import re
import shlex
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
from pages import blocks, pages
from rq.cli import main as rq
from support import ROOT

from rq_pooled.cli.main import cli as ours
from rq_pooled.cli.web import CREDENTIALS
from rq_pooled.config import Settings

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="rq_pooled is installed here, without its docs")
PAGES = pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
#: A command in code quotes, and in a block, after settings and up to a comment or what a shell does with it.
INLINE = re.compile(r"`((?:[A-Z_]+=\S+ )*(?:rq|rq-pooled|make|python -m benchmarks[\w.]*)(?: [^`]+)?)`")
LINE = re.compile(
    r"^(?:\$ )?((?:[A-Z_]+=\S+ )*(?:rq|rq-pooled|make|python -m benchmarks[\w.]*) [^#|;&>\n]+)", re.MULTILINE
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def commands(page: Path) -> set[str]:
    """Return the commands of a page, those in code quotes and those in blocks."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = [command.replace("\n", " ") for command in INLINE.findall(text)]
    for block in blocks(page):
        if block.shell:
            found += LINE.findall(block.text)
    return {command.strip() for command in found}


def wrong(command: str) -> str:
    """Return what is wrong with a command, without running it."""
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return "" if all(word in targets for word in words[1:] if "=" not in word) else f"{command}: no such target"
    if words[0] == "python":
        named = [word for word in words[3:] if words[2] == "benchmarks" and word != "--write"]
        names = [words[2], *(f"benchmarks.{word}" for word in named)]
        return "".join(f"{command}: no {name}" for name in names if find_spec(name) is None)
    group: click.Command = ours if words[0] == "rq-pooled" else rq
    rest = words[1:]
    while isinstance(group, click.Group) and rest and not rest[0].startswith("-"):
        if rest[0] not in group.commands:
            return f"{command}: no command {rest[0]}"
        group, rest = group.commands[rest[0]], rest[1:]
    known = {name for parameter in group.params for name in (*parameter.opts, *parameter.secondary_opts)} | {
        "-h",
        "--help",
    }
    return "".join(
        f"{command}: no {word}"
        for word in rest
        if word.startswith("-") and word != "-" and word.split("=")[0] not in known
    )


@PAGES
def test_commands_exist(page: Path) -> None:
    """Each command that a page names has its subcommand, options, target or module."""
    assert [fault for command in sorted(commands(page)) if (fault := wrong(command))] == []


@PAGES
def test_settings_exist(page: Path) -> None:
    """Each RQ_POOLED_ variable that a page names is a setting, or a file that holds one."""
    names = {f"RQ_POOLED_{name.upper()}" for name in Settings.__dataclass_fields__}
    known = names | {f"{name}_FILE" for name in names} | {"RQ_POOLED_TEST_SERVER", CREDENTIALS}
    found = set(re.findall(r"\bRQ_POOLED_[A-Z_]*[A-Z]\b", page.read_text()))
    assert found - known == set()


def anchor(heading: str) -> str:
    """Return the anchor that a heading gets."""
    plain = re.sub(r"\]\([^)]*\)", "", heading).lower()
    return re.sub(r"[^\w -]", "", plain).strip().replace(" ", "-")


def repository() -> str:
    """Return the address of the repository, which the metadata names once."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup["metadata"]["url"]


@PAGES
def test_links_lead_somewhere(page: Path) -> None:
    """A link to a page, a heading, a file or a picture of the repository finds it."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    address = repository()
    raw = address.replace("github.com", "raw.githubusercontent.com")
    dead = []
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "code", text)):
        here = re.sub(rf"{address}/(?:blob|tree)/main/|{raw}/main/", f"{ROOT}/", link)
        if re.match(r"\w+:", here):
            dead += [link] if here.startswith((address, raw)) else []
            continue
        path, _, fragment = here.partition("#")
        target = page.parent / path if path else page
        headings = [anchor(one) for one in HEADING.findall(target.read_text())] if fragment and target.is_file() else []
        if not target.exists() or (fragment and fragment not in headings):
            dead.append(link)
    assert dead == []


def test_the_package_index_can_show_the_readme() -> None:
    """The README's links and pictures are absolute, since the package index has no files beside it."""
    assert [link for link in LINK.findall((ROOT / "README.md").read_text()) if not link.startswith("https://")] == []
    assert len((ROOT / "README.md").read_text().splitlines()) < 100


def test_what_does_not_exist_is_found() -> None:
    """An unknown command, option, target or benchmark is found."""
    for command in ("rq-pooled wroker", "rq worker --worker-klass x", "make demmo", "python -m benchmarks latecny"):
        assert wrong(command)
    assert not wrong("RQ_POOLED_CONCURRENCY=10 rq worker --worker-class rq_pooled.Worker high")
