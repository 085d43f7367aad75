"""Processes that tests fork are what new interpreters would be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
from support import JOBS, PYTHONPATH, wait_until

PROGRAM = [str(JOBS / "what_i_am.py"), "--some", "words"]


def told(folder: Path, command: list[str], environment: dict[str, str], fresh: bool) -> dict[str, Any]:
    """Run the program in one of the two ways; return what it prints."""
    with open(folder / "out", "w+b") as out:
        process = forked.start(command, environment, out, folder, fresh)
        assert isinstance(process, subprocess.Popen if fresh else forked.Forked)
        assert process.wait(20) == 3
        out.seek(0)
        return json.loads(out.read())  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", [[], ["-W", "error"]], ids=["plain", "strict"])
@pytest.mark.parametrize("settings", [{}, {"PYTHONUNBUFFERED": "1", "TZ": "Asia/Tokyo", "TELLS": "\udc80ü"}])
def test_a_forked_process_is_like_a_new_one(tmp_path: Path, options: list[str], settings: dict[str, str]) -> None:
    """It has the words, paths, variables, streams, descriptors and signals of a new interpreter, and its exit code."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([PYTHONPATH, str(tmp_path)]), **settings}
    if "PYTHONUNBUFFERED" not in settings:
        environment.pop("PYTHONUNBUFFERED", None)
    command = [sys.executable, *options, *PROGRAM]
    one, other = (told(tmp_path, command, environment, fresh) for fresh in (False, True))
    assert one == other


TEXT = "from rq_pooled import Worker\nimport sys; print(__name__, sys.argv, sys.path, Worker); sys.exit('ends so')"


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "rq_pooled", "settings"],
        ["-m", "rq_pooled", "no-such-command"],
        ["-m", "rq_pooled", "check", "--url", "redis://127.0.0.1:1/0"],
        ["-m", "rq.cli", "worker", "--help"],
        ["-c", TEXT, "one", "two"],
    ],
    ids=["settings", "usage", "error", "rq", "text"],
)
def test_a_command_says_the_same_however_it_starts(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """Output, errors and exit code are those of a new interpreter."""
    command, environment = [sys.executable, *words], {**os.environ, "PYTHONPATH": PYTHONPATH}
    assert forked.can_fork(command, environment, Path.cwd())
    one = forked.run(command, environment, 20)
    monkeypatch.setattr(forked, "can_fork", lambda *_: False)
    other = forked.run(command, environment, 20)
    assert (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)


def test_its_end_is_told_as_of_a_child(tmp_path: Path) -> None:
    """It stays until it is asked for, and a signal that ended it is told as a negative code."""
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    with open(tmp_path / "out", "wb") as out:
        process = forked.start(
            [sys.executable, str(JOBS / "budget_user.py"), "redis://127.0.0.1:1", "1"], environment, out
        )
    assert isinstance(process, forked.Forked) and process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: "State:\tZ" in Path(f"/proc/{process.pid}/status").read_text())
    assert process.wait(5) == process.poll() == -signal.SIGKILL
    assert not Path(f"/proc/{process.pid}").exists()
    process.kill()


@pytest.mark.parametrize("name", ["PYTHONHASHSEED", "PYTHONWARNINGS", "LANG", "RQ_KEY_PREFIX", "OTEL_SDK_DISABLED"])
def test_what_is_read_at_the_start_needs_a_new_interpreter(tmp_path: Path, name: str) -> None:
    """A variable that the interpreter or a module reads while it is loaded is never given to a forked process."""
    command = [sys.executable, "-m", "rq_pooled", "settings"]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    assert forked.can_fork(command, environment, tmp_path)
    assert not forked.can_fork(command, {**environment, name: "another"}, tmp_path)


@pytest.mark.parametrize("name", ["rq", "redis.py", "sitecustomize.py"])
def test_another_version_in_the_path_needs_a_new_interpreter(tmp_path: Path, name: str) -> None:
    """A folder in PYTHONPATH with a module that the server has loaded from elsewhere is respected."""
    (tmp_path / name).touch()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), PYTHONPATH])}
    assert not forked.can_fork([sys.executable, "-m", "rq_pooled", "settings"], environment, Path.cwd())


def test_an_ignored_signal_needs_a_new_interpreter(tmp_path: Path) -> None:
    """What this process ignores, a new process would ignore, too."""
    command, environment = [sys.executable, "-m", "rq_pooled"], {**os.environ, "PYTHONPATH": PYTHONPATH}
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert not forked.can_fork(command, environment, tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert forked.can_fork(command, environment, tmp_path)
