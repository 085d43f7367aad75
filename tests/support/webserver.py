"""Real web servers for the tests, and requests to them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import ROOT, wait_until

SHOP = ROOT / "examples" / "flask_app"


@contextlib.contextmanager
def running(command: list[str], address: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for the length of the block; wait until it answers at ``address``. SIGTERM ends it."""
    env = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(SHOP), str(ROOT / "examples"), env.get("PYTHONPATH", "")])
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, *command], env=env, cwd=ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL
        )
    try:
        wait_until(lambda: process.poll() is not None or answers(address), 40, f"{command}: {log.read_text()}")
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(address: str) -> bool:
    """Tell whether somebody serves HTTP there, whatever he says."""
    try:
        request(address)
    except OSError:
        return False
    return True


def request(address: str, method: str = "GET", timeout: float = 30, **headers: str) -> tuple[int, Any]:
    """Return (status, body): JSON as data, all else as text."""
    asked = urllib.request.Request(address, method=method, headers={k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(asked, timeout=timeout) as response:
            status, kind, body = response.status, response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            status, kind, body = error.code, error.headers["Content-Type"], error.read().decode()
    return status, json.loads(body) if kind and kind.startswith("application/json") else body
