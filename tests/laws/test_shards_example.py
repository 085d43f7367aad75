"""The example with two shards does what its README prints, on two servers and on a cluster."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from support import ROOT, wait_until

from rq_pooled.rq_api import RQ3

SHARDS = ROOT / "examples" / "shards"

pytestmark = [pytest.mark.timeout(180), pytest.mark.skipif(not RQ3, reason="RQ 2 has one prefix")]


def printed() -> list[tuple[str, list[str]]]:
    """Return the commands of the README, each with the lines that it prints."""
    text = (SHARDS / "README.md").read_text()
    blocks = [block.splitlines() for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    return [(block[0].removeprefix("$ "), block[1:]) for block in blocks]


def run(command: str, log: str = "") -> list[str]:
    """Run a command of the README, with this Python, and return what it prints; ``log`` is what workers may say."""
    words = shlex.split(command)
    settings = {}
    while "=" in words[0]:
        name, _, settings[name] = words.pop(0).partition("=")
    assert words.pop(0) == "python"
    ended = subprocess.run(
        [sys.executable, "-W", "error", *words],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    said = [line for line in ended.stderr.splitlines() if not (log and re.search(log, line))]
    assert ended.returncode == 0 and not said, ended.stdout + ended.stderr
    return ended.stdout.splitlines()


def check(command: str, lines: list[str], **ports: int) -> None:
    """Check that a command prints the lines of the README, in which … is anything."""
    for old, new in ports.items():
        command = command.replace(old.removeprefix("p"), str(new))
        lines = [line.replace(old.removeprefix("p"), str(new)) for line in lines]
    output = run(command)
    patterns = [".+".join(map(re.escape, line.split("…"))) for line in lines]
    assert len(output) == len(patterns) and all(map(re.fullmatch, patterns, output)), output


@pytest.fixture
def two_masters(_server_available: None) -> Iterator[Cluster]:
    """A cluster of two masters without replicas."""
    one = Cluster(os.environ.get("RQ_POOLED_TEST_SERVER") or None, masters=2, replicas=False)
    yield one
    one.close()


def test_each_shard_on_a_server_of_its_own(_server_available: None) -> None:
    """The first command of the README runs as printed: each order is packed by the shard of its customer."""
    command, lines = printed()[0]
    check(command, lines)


def test_both_shards_on_a_cluster(two_masters: Cluster) -> None:
    """The other commands run as printed: the shards are on two nodes, and then one of them is moved."""
    first, second = two_masters.masters
    _, *others = printed()
    assert len(others) == 2
    for command, lines in others:
        check(command, lines, p7000=first.port, p7001=second.port)
    assert two_masters.owner("{shop-b}") is first
    check(others[0][0], [line.replace("7001", "7000") for line in others[0][1]], p7000=first.port)


def test_a_shard_moves_while_it_works(two_masters: Cluster) -> None:
    """A shard that moves to and fro while orders come in loses none of them, and its customers get no error."""
    url, (first, second) = two_masters.url, two_masters.masters
    output: list[str] = []
    command = f"SHARD_URLS={url} python examples/shards/run.py --orders 600"
    shop = threading.Thread(target=lambda: output.extend(run(command, "Worker .*(lost the server|server is back)")))
    shop.start()
    redis = second.client()
    wait_until(lambda: redis.zcard("{shop-b}:finished:orders") > 20, 60, "packed orders")
    for node in (first, second, first):
        run(f"python examples/shards/move.py '{{shop-b}}' redis://{node.address}")
        wait_until(lambda: not shop.is_alive() or node.client().zcard("{shop-b}:finished:orders") > 20, 60)  # noqa: B023
    shop.join(100)
    taken = [re.fullmatch(r".* (\d+) orders taken, (\d+) packed", line) for line in output]
    assert len(taken) == 2 and all(match and match[1] == match[2] for match in taken), output
    assert sum(int(match[1]) for match in taken if match) == 600


def test_readme_names_all_files() -> None:
    """The README says of each file what it does."""
    named = set(re.findall(r"^\| `(\w+\.py)`", (SHARDS / "README.md").read_text(), re.MULTILINE))
    assert named == {path.name for path in Path(SHARDS).glob("*.py")}
