"""Names of exceptions: which one a traceback ends with, and which kinds it is of."""

from __future__ import annotations

import importlib.util
import sys
import traceback
import types
from collections.abc import Callable

import pytest
import redis.exceptions
import retry_jobs
from hypothesis import given
from hypothesis import strategies as st

from rq_pooled.failed.tracebacks import recorded_name
from rq_pooled.retry.exception_names import is_kind, is_recorded_kind, names_of


def text_of(function: Callable[[], object]) -> str:
    """What RQ would record of what this raises."""
    try:
        function()
    except Exception:  # noqa: BLE001 - whatever it is
        return "".join(traceback.format_exception(*sys.exc_info()))
    raise AssertionError("nothing was raised")


def chain(cause: bool) -> None:
    """Raise while another exception is handled."""
    try:
        raise KeyError("first")
    except KeyError as error:
        if cause:
            raise retry_jobs.Busy("second") from error
        raise retry_jobs.Busy("second")


NESTED = text_of(lambda: retry_jobs.fail("ValueError"))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda: retry_jobs.fail("ValueError"), "ValueError"),
        (lambda: retry_jobs.fail("ValueError", ""), "ValueError"),
        (lambda: retry_jobs.fail("Busy", "a\n  b\nNameError: c"), "retry_jobs.Busy"),
        (lambda: retry_jobs.fail("Busy", NESTED), "retry_jobs.Busy"),
        (lambda: chain(True), "retry_jobs.Busy"),
        (lambda: chain(False), "retry_jobs.Busy"),
        (lambda: compile("a b", "f", "exec"), "SyntaxError"),
        (lambda: (_ for _ in ()).throw(redis.exceptions.ConnectionError("x")), "redis.exceptions.ConnectionError"),
    ],
)
def test_name_is_that_of_the_last_exception(function: Callable[[], object], name: str) -> None:
    """Chained or alone, with any message, the exception that ended the job is found."""
    assert recorded_name(text_of(function)) == name


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200))
def test_no_message_changes_the_name(message: str) -> None:
    """What an exception says is not mistaken for its name."""
    assert recorded_name(text_of(lambda: retry_jobs.fail("Broken", message))) == "retry_jobs.Broken"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_name_of_a_group_is_the_groups() -> None:
    """A group counts as what it is, not as one of its members."""

    def raise_group() -> None:
        group = __builtins__["ExceptionGroup"]  # type: ignore[index] # typed for Python 3.10
        raise group("several", [ValueError(1), KeyError(2)])

    assert recorded_name(text_of(raise_group)) == "ExceptionGroup"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", ""),
        ("Work-horse terminated unexpectedly; waitpid returned 9 (signal 9); ", ""),
        ("Moved to FailedJobRegistry, due to AbandonedJobError, at 2026-01-01", "rq.exceptions.AbandonedJobError"),
        ("Job stopped by user, work-horse terminated.", ""),
    ],
)
def test_texts_without_traceback(text: str, name: str) -> None:
    """What RQ writes about jobs that raised nothing names what it names."""
    assert recorded_name(text) == name


@pytest.mark.parametrize(
    ("recorded", "wanted", "same"),
    [
        ("ConnectionError", ConnectionError, True),
        ("ConnectionError", "ConnectionError", True),
        ("redis.exceptions.ConnectionError", "ConnectionError", True),
        ("redis.exceptions.ConnectionError", ConnectionError, False),
        ("redis.exceptions.ConnectionError", "redis.ConnectionError", True),
        ("redis.exceptions.ConnectionError", redis.RedisError, True),
        ("ConnectionResetError", OSError, True),
        ("ConnectionResetError", "OSError", True),
        ("gone.Module.Error", "Error", True),
        ("gone.Module.Error", "gone.Module.Error", True),
        ("gone.Module.Error", "other.Error", False),
        ("gone.Module.Error", Exception, False),
        ("", "Exception", False),
    ],
)
def test_recorded_names_match(recorded: str, wanted: type[BaseException] | str, same: bool) -> None:
    """A bare name means every class of that name, a dotted one its class; subclasses count where they are known."""
    assert is_recorded_kind(recorded, names_of(wanted, "on")) is same


def test_recorded_names_load_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that others recorded does not make a module import what it exports on demand."""
    lazy = types.ModuleType("lazy")
    asked: list[str] = []
    lazy.__getattr__ = asked.append  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazy", lazy)
    assert not is_recorded_kind("lazy.Error", ["ValueError"]) and not is_kind(KeyError, ["lazy.Error"])
    assert asked == []


def test_raised_exceptions_match_by_every_name_they_have() -> None:
    """A class is found by its own name, by that of an ancestor, and by a name under which it is exported."""
    for name in ("Busy", "retry_jobs.Busy", "ConnectionError", "builtins.OSError"):
        assert is_kind(retry_jobs.Busy, [name])
    assert is_kind(redis.exceptions.TimeoutError, ["redis.TimeoutError"])
    assert not is_kind(retry_jobs.Broken, ["ConnectionError", "never.imported.Error"])
    assert "never.imported" not in sys.modules


def test_a_module_that_loads_when_it_is_used_is_not_loaded_by_its_name(tmp_path, monkeypatch):
    """A recorded name of a module under ``importlib.util.LazyLoader`` does not run that module."""
    (tmp_path / "lazy_kind.py").write_text("raise SystemExit('it was run')\n")
    spec = importlib.util.spec_from_file_location("lazy_kind", tmp_path / "lazy_kind.py")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lazy_kind", module)
    spec.loader.exec_module(module)

    assert not is_recorded_kind("lazy_kind.Bad", ("OSError",))
    assert not is_kind(OSError, ("lazy_kind.Bad",))
