"""What CI installs: the lock names all that setup.cfg asks for, in versions that it allows, each file with its hash."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

packaging = pytest.importorskip("packaging.requirements")

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / ".ci" / "lock").glob("*.txt"))
EXTRAS = ("embedded", "flask", "metrics", "test", "lint", "types")


def entries(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the locked (version, marker) by name."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, version, marker in re.findall(
        r"^([\w.-]+)==([^\s;\\]+)(?: ; ([^\\\n]+))? \\$", path.read_text(), re.MULTILINE
    ):
        found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), []).append((version, marker.strip()))
    return found


def asked() -> list[str]:
    """Return the requirements of the package and of the extras that CI installs."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = [config["options"]["install_requires"], *(config["options.extras_require"][name] for name in EXTRAS)]
    return [line for text in texts for line in text.splitlines() if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_each_file_has_a_hash(path: Path) -> None:
    """No entry of a lock is without hashes, and none leads anywhere but to a package index."""
    text = path.read_text()
    blocks = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    assert blocks and all(re.search(r"--hash=sha256:[0-9a-f]{64}", block) for block in blocks)
    assert "://" not in text and "--index" not in text and " @ " not in text


def test_the_lock_is_what_setup_cfg_asks_for() -> None:
    """Each requirement of setup.cfg is locked in a version that it allows; after a change there, `make lock` is due."""
    locked, missing = entries(ROOT / ".ci" / "lock" / "dev.txt"), []
    for line in asked():
        one = packaging.Requirement(line)
        versions = locked.get(re.sub(r"[-_.]+", "-", one.name).lower(), [])
        if not versions or not all(one.specifier.contains(version, prereleases=True) for version, _ in versions):
            missing.append(f"{line}: {versions or 'not locked'}")
    assert missing == [], "run make lock"


def test_ci_installs_from_locks_only() -> None:
    """The script of CI names no version by itself, and each lock that it names exists."""
    script = (ROOT / ".ci" / "run").read_text()
    assert set(re.findall(r"install_rq (\S+)", script)) == {path.stem.removeprefix("rq-") for path in LOCKS} - {"dev"}
    assert script.count("pip ") == 1 and "--require-hashes" in script
    assert "--require-hashes -r .ci/lock/dev.txt" in (ROOT / "Makefile").read_text()
