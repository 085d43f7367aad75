"""Run the blocks of one page in order, as a reader does who types them into one shell and one Python.

Reads steps as JSON from standard input, and writes what each one did as JSON to the file that the first argument names.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path
from typing import Any

#: A command that takes longer has hung.
PATIENCE = 45


class Page:
    """One shell's variables, one Python's names, and the programs that go on in the background."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        self.module = types.ModuleType("page")
        # Jobs that a page defines have the name of a module that a queue accepts.
        sys.modules["page"] = self.module
        self.running: list[tuple[subprocess.Popen[bytes], str]] = []

    def python(self, code: str) -> tuple[str, str]:
        """Run code and return what it printed, and what went wrong."""
        out = io.StringIO()
        os.environ.update(self.environment)
        try:
            with contextlib.redirect_stdout(out):
                exec(compile(code, "page", "exec"), self.module.__dict__)  # noqa: S102
        except BaseException:  # noqa: BLE001
            return out.getvalue(), traceback.format_exc(limit=-3)
        return out.getvalue(), ""

    def shell(self, script: str) -> tuple[str, str]:
        """Run a script to its end; what it exports holds for the next one."""
        with tempfile.NamedTemporaryFile() as kept:
            process = subprocess.Popen(
                ["bash", "-e", "-c", f"{script}\nenv -0 >{kept.name}"], env=self.environment, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            try:
                out, errors = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return "", f"it did not end within {PATIENCE} s: {''.join(process.communicate())}"
            after = Path(kept.name).read_text()
        if after:
            self.environment = dict(one.split("=", 1) for one in after.split("\0") if "=" in one)
        return out, f"exit code {process.returncode}: {out}{errors}" if process.returncode else ""

    def background(self, script: str, until: str) -> tuple[str, str]:
        """Start a program, wait until it has printed a text, and leave it running."""
        with tempfile.NamedTemporaryFile(delete=False) as out:
            process = subprocess.Popen(
                ["bash", "-c", script], env={**self.environment, "PYTHONUNBUFFERED": "1"}, stdin=subprocess.DEVNULL,
                stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self.running.append((process, script))
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and process.poll() is None:
            if until in Path(out.name).read_text(errors="replace"):
                return "", ""
            time.sleep(0.03)
        printed = Path(out.name).read_text(errors="replace")
        return printed, "" if until in printed else f"it did not print {until!r}:\n{printed}"

    def end(self) -> str:
        """Stop what runs in the background, and return which programs did not obey."""
        late = ""
        for process, script in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                late += f"SIGTERM did not end {script}"
        return late


def main() -> None:
    page, did = Page(), []
    for step in json.load(sys.stdin):
        did.append(one(page, step))
    did.append({"step": {"line": 0, "text": "the end"}, "printed": "", "wrong": page.end()})
    Path(sys.argv[1]).write_text(json.dumps(did))


def one(page: Page, step: dict[str, Any]) -> dict[str, Any]:
    """Run one step and say what it did."""
    text, first = step["text"], step["first"]
    if not step["shell"]:
        printed, wrong = page.python(f"{first}\n{text}" if first else text)
    elif step["until"]:
        printed, wrong = page.background(text, step["until"])
    else:
        printed, wrong = page.shell(f"{first}\n{text}" if first else text)
    return {"step": step, "printed": printed, "wrong": wrong}


if __name__ == "__main__":
    main()
