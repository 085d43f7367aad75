"""What is released is what is in the source tree: the wheel holds the package, the sdist the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from configparser import ConfigParser
from pathlib import Path
from zipfile import ZipFile

import pytest

import rq_pooled

SOURCE = Path(rq_pooled.__file__).parent
ROOT = SOURCE.parent


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    """A wheel contains each module, script, template and static file, so that an installed package works as this
    tree.
    """
    pytest.importorskip("setuptools", minversion="70.1", reason="no setuptools that builds wheels by itself")
    if not (ROOT / "setup.cfg").exists():
        pytest.skip("rq_pooled is installed here, and its source tree is elsewhere")
    shutil.copytree(SOURCE, tmp_path / "rq_pooled", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    code = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in ZipFile(wheel).namelist() if name.startswith("rq_pooled/")}
    ours = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "rq_pooled").rglob("*") if path.is_file()}
    assert {".py", ".lua", ".html", ".css", ".js", ".svg"} <= {Path(name).suffix for name in packed}
    assert packed == ours


def test_the_sdist_holds_every_file_of_the_repository(tmp_path: Path) -> None:
    """An sdist contains tests, docs, examples and what they need, so that the tests run from it."""
    pytest.importorskip("setuptools", minversion="70.1", reason="no setuptools that builds sdists by itself")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode or not (ROOT / ".git").exists():
        pytest.skip("this is no repository: the sdist itself, or an installed package")
    ours = {name for name in listed.stdout.splitlines() if (ROOT / name).exists() and not name.startswith(".git")}
    for name in ours:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    code = "from setuptools.build_meta import build_sdist; build_sdist('.')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert ours - packed == set()


def test_the_version_stands_in_one_place() -> None:
    """The version of setup.cfg is the one that CHANGES.md begins with, and no module repeats it."""
    if not (ROOT / "setup.cfg").exists():
        pytest.skip("rq_pooled is installed here, and its source tree is elsewhere")
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    version = setup["metadata"]["version"]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGES.md").read_text(), re.MULTILINE)
    assert version in headings[:2]
    assert not [path for path in SOURCE.rglob("*.py") if f'"{version}"' in path.read_text()]
