"""What is installed is what is in the source tree: scripts, templates and static files travel in the wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
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
