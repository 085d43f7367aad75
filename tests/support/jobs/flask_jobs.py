"""Applications and jobs for the tests of APP; what happens is noted in the file that FLASK_NOTES names."""

from __future__ import annotations

import os
import sys
from typing import Any

from flask import Flask, current_app, g
from rq import get_current_job


def note(word: str) -> None:
    """Append a line: what happened, and in which process."""
    with open(os.environ["FLASK_NOTES"], "a") as file:
        file.write(f"{word} {os.getpid()}\n")


def create_app() -> Flask:
    """Be a factory: each call is noted, and so is each teardown."""
    note("created")
    app = Flask("shop")
    app.config["ANSWER"] = 42

    @app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        note(f"teardown:{g.get('job', 'none')}:{error}")
        if g.get("break_teardown"):
            raise RuntimeError("teardown on purpose")

    return app


def failing_factory() -> Flask:
    """Be a factory whose configuration is wrong."""
    raise KeyError("DATABASE_URL")


def leaving_factory() -> Flask:
    """Be a factory that ends the process."""
    sys.exit("no configuration")


def not_an_app() -> str:
    """Be a factory of something else."""
    return "hello"


def answer() -> tuple[int, bool]:
    """Return what only the application knows, and whether another job's data is in the context."""
    job = get_current_job()
    assert job is not None
    seen = "job" in g
    g.job = job.id
    return current_app.config["ANSWER"], seen


def fail() -> None:
    """Raise, in the context."""
    answer()
    raise ValueError("on purpose")


def break_teardown() -> str:
    """Succeed, and have the teardown fail."""
    g.break_teardown = True
    return "done"


def note_failure(job: Any, *_: Any) -> None:
    """Be a failure callback that needs the application."""
    note(f"callback:{current_app.config['ANSWER']}")
