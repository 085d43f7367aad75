"""Lines that each job brings: a copied record is what ``logger.info`` makes, and whoever takes part is asked."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import pytest

from rq_pooled.frequent_lines import FrequentLines

TEXT = "Worker %s: job %s"


class Keep(logging.Handler):
    """Keeps records, and adds to each what a formatter adds."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        record.message = record.getMessage()
        record.asctime = "now"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of its own, which keeps its records."""
    logger = logging.getLogger("rq.frequent")
    logger.setLevel(logging.INFO)
    handler = Keep()
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)
    logger.filters.clear()


def kept(logger: logging.Logger) -> list[logging.LogRecord]:
    """The records so far."""
    (handler,) = logger.handlers
    assert isinstance(handler, Keep)
    return handler.records


def test_a_copied_record_is_what_a_line_of_its_own_gives(logger: logging.Logger) -> None:
    """Each field is that of ``logger.info`` at the same place, but the time of the line and its arguments."""
    lines = FrequentLines(logger)
    for job, info in (("a", lines.info), ("b", lines.info), ("c", lines.info), ("d", logger.info)):
        info(TEXT, "w", job)
    first, second, third, own = map(vars, kept(logger))
    times = {"created", "msecs", "relativeCreated"}
    for record, job in ((first, "a"), (second, "b"), (third, "c"), (own, "d")):
        assert record["args"] == ("w", job) and record["message"] == f"Worker w: job {job}"
        assert {name: record[name] for name in record.keys() - times - {"args", "message"}} == {
            name: own[name] for name in own.keys() - times - {"args", "message"}
        }
        assert 0 <= record["msecs"] < 1000 and abs(record["created"] % 1 * 1000 - record["msecs"]) <= 1.001
    began = own["created"] - own["relativeCreated"] / 1000
    assert third["created"] - third["relativeCreated"] / 1000 == pytest.approx(began, abs=1e-3)
    assert second["created"] <= third["created"] <= own["created"]
    assert first["funcName"] == "test_a_copied_record_is_what_a_line_of_its_own_gives"


def test_lines_are_copied(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first line of a text looks for its caller; without that all of this would be for nothing."""
    looked: list[None] = []
    find = logging.currentframe
    monkeypatch.setattr(logging, "currentframe", lambda: (looked.append(None), find())[1])
    lines = FrequentLines(logger)
    for text in (TEXT, TEXT, "Worker %s is %s", TEXT):
        lines.info(text, "w", "a")
    assert len(looked) == 2 and len(kept(logger)) == 4


def test_filters_see_each_record(logger: logging.Logger) -> None:
    """A filter changes each record, as OneLine does, and none sees what it did to the one before."""
    seen: list[Any] = []

    def mark(record: logging.LogRecord) -> bool:
        seen.append((record.args, vars(record).get("marked")))
        record.marked = True
        return record.args != ("w", "b")

    logger.addFilter(mark)
    lines = FrequentLines(logger)
    for job in "abc":
        lines.info(TEXT, "w", job)
    assert seen == [(("w", job), None) for job in "abc"]
    assert [record.args for record in kept(logger)] == [("w", "a"), ("w", "c")]
    assert logger.filters == [mark]


def wrapped(function: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """What an instrumentation puts around a function."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(function.__name__)
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("name", ["info", "_log", "makeRecord", "findCaller"])
def test_a_wrapper_sees_each_line(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What is passed over is called for each line once it is wrapped, also in the middle of a worker's life."""
    lines, calls = FrequentLines(logger), []  # type: ignore[var-annotated]
    lines.info(TEXT, "w", "a")
    lines.info(TEXT, "w", "b")
    monkeypatch.setattr(logging.Logger, name, wrapped(getattr(logging.Logger, name), calls))
    lines.info(TEXT, "w", "c")
    lines.info(TEXT, "w", "d")
    assert calls == [name] * 2 and len(kept(logger)) == 4
    monkeypatch.undo()
    monkeypatch.setattr(logger, name, wrapped(getattr(logger, name), calls), raising=False)
    lines.info(TEXT, "w", "e")
    lines.info(TEXT, "w", "f")
    assert calls == [name] * 4


def test_what_records_are_made_by_sees_each_line(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper around the making of a record is called for each line."""
    lines, calls = FrequentLines(logger), []  # type: ignore[var-annotated]
    lines.info(TEXT, "w", "a")
    monkeypatch.setattr(logging.LogRecord, "__init__", wrapped(logging.LogRecord.__init__, calls))
    lines.info(TEXT, "w", "b")
    lines.info(TEXT, "w", "c")
    assert calls == ["__init__"] * 2


def test_a_factory_makes_each_record(logger: logging.Logger) -> None:
    """Records of a program's own factory (OpenTelemetry sets one) are made by it."""
    lines = FrequentLines(logger)
    lines.info(TEXT, "w", "a")
    before = logging.getLogRecordFactory()

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.trace = record.args
        return record

    logging.setLogRecordFactory(make)
    try:
        lines.info(TEXT, "w", "b")
        lines.info(TEXT, "w", "c")
    finally:
        logging.setLogRecordFactory(before)
    lines.info(TEXT, "w", "d")
    lines.info(TEXT, "w", "e")
    assert [vars(record).get("trace") for record in kept(logger)] == [None, ("w", "b"), ("w", "c"), None, None]


def test_a_class_of_loggers_is_asked(logger: logging.Logger) -> None:
    """A logger of another class logs each line itself."""

    made: list[Any] = []

    class Own(logging.Logger):
        def makeRecord(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
            made.append(super().makeRecord(*args, **kwargs))
            return made[-1]

    own = Own("rq.own", logging.INFO)
    own.addHandler(logger.handlers[0])
    lines = FrequentLines(own)
    for job in "abc":
        lines.info(TEXT, "w", job)
    assert made == kept(logger) and len(made) == 3


def test_names_and_process_are_those_of_the_line(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread or process that is named anew, and a forked one, stand in their lines."""
    lines = FrequentLines(logger)
    lines.info(TEXT, "w", "a")
    monkeypatch.setattr(threading.current_thread(), "name", "renamed")
    monkeypatch.setattr(multiprocessing.current_process(), "name", "too")
    lines.info(TEXT, "w", "b")
    record = kept(logger)[-1]
    assert (record.threadName, record.processName) == ("renamed", "too")
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        lines.info(TEXT, "w", "c")
        lines.info(TEXT, "w", "d")
        right = all(one.process == os.getpid() for one in kept(logger)[-2:])
        os.write(writing, b"right" if right else b"wrong")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 5) == b"right"
    os.close(reading)
    os.close(writing)
