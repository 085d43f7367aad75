"""Each block of the README and the docs does what the page says, on a fresh server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import SHELL, as_shown, blocks, pages
from redis import Redis
from support import ROOT, SUPPORT

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.rq_api import RQ3

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="rq_pooled is installed here, without its docs")
#: What readers have beside them: their modules, and the folders of a clone.
APP = Path(__file__).parent / "app"
RUNNABLE = ("python", *SHELL)
#: Pages that set RQ_KEY_PREFIX, which older RQ does not know.
OF_RQ_3 = ("docs/rq-3.md", "examples/shards/README.md")
PAGES = [page for page in pages() if any(block.language in RUNNABLE and not block.not_run for block in blocks(page))]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder that a page's commands run in: an app, the examples beside it, and a clone's folders."""
    for folder in (ROOT / "examples", APP, ROOT):
        for path in folder.iterdir():
            if path.suffix == ".py" or path.name in ("examples", "benchmarks", "docs"):
                target = tmp_path / path.name
                target.unlink(missing_ok=True)
                target.symlink_to(path)
    return tmp_path


@pytest.mark.timeout(120)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_block_runs_as_printed(page: Path, home: Path, server: EmbeddedServer, redis: Redis) -> None:
    """A reader who types a page's blocks in order sees no error, and the output that the page shows."""
    if not RQ3 and str(page.relative_to(ROOT)) in OF_RQ_3:
        pytest.skip("of RQ 3")
    host = server.url.removeprefix("redis://").split("/")[0]
    steps, shown = [], []
    for block in blocks(page):
        if block.not_run or block.language not in RUNNABLE:
            continue
        for number, (text, output) in enumerate(block.steps()):
            step = {"line": block.line, "text": text.replace("localhost:6379", host), "shell": block.shell}
            steps.append({**step, "until": block.until, "first": "" if number else block.first})
            shown.append(output)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(home), str(ROOT)]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "RQ_POOLED_URL": server.url,
        "RQ_REDIS_URL": server.url,
        "SHOP_SERVER": server.url,
    }
    if re.search(r"^export RQ_(REDIS|POOLED)_URL=redis://localhost", page.read_text(), re.MULTILINE):
        # The page says where the server is: what it says has to reach each of its commands.
        del environment["RQ_POOLED_URL"], environment["RQ_REDIS_URL"]
    report = home / "report.json"
    program = [sys.executable, str(SUPPORT / "page_program.py"), str(report)]
    done = subprocess.run(
        program,
        input=json.dumps(steps),
        env=environment,
        cwd=home,
        text=True,
        capture_output=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wrong = []
    for did, output in zip(json.loads(report.read_text()), [*shown, None], strict=True):
        where = f"{page.name}:{did['step']['line']}: {did['step']['text'].strip()}"
        if did["wrong"]:
            wrong.append(f"{where}\n{did['wrong']}")
        elif output and not as_shown(output, did["printed"]):
            wrong.append(f"{where}\nshows\n{output}\nand it printed\n{did['printed']}")
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_does_not_run_says_why(page: Path) -> None:
    """A block of text that is not tried has a comment with the reason above it; pictures and data need none."""
    silent = [block.line for block in blocks(page) if block.language in ("text", "txt") and not block.not_run]
    assert silent == []


def test_the_output_of_a_moment_is_compared() -> None:
    """Numbers, ids and widths may differ between a page and a run; words may not."""
    assert as_shown("a  3 jobs\n", "a 17 jobs")
    assert as_shown("a …\n...\nend", "a b\nc\nd\nend")
    assert not as_shown("3 jobs", "3 queues")
    assert not as_shown("one\n", "one\ntwo\n")
