"""RQ's lines written without a LogRecord, against logging itself. In processes of their own: pytest changes logging."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

_SCRIPT = """
import io, logging, re, sys
from rq.logutils import setup_loghandlers
from rq_pooled.quicklog import quickened

{before}
setup_loghandlers("INFO", {options})
plain = logging.getLogger("rq.worker")
quick = quickened(plain)
root = logging.getLogger()
{after}
made = []
sys.setprofile(lambda frame, event, _: made.append(1) if frame.f_code.co_name == "makeRecord" and event == "call" else None)
for number, log in enumerate((plain, quick)):
    made.clear()
    sys.stdout.write(f"<{{number}}>")
    {call}
    sys.setprofile(None) if number else None
    sys.stdout.write(f"<{{len(made)}} records>")
"""
_CALL = 'log.info("Worker %s: job %s", "w", 7)'


def _lines(before: str = "", options: str = "", after: str = "", call: str = _CALL) -> tuple[str, str, int]:
    """Return what logging and what we have written, times struck out, and how many records we made for it."""
    script = _SCRIPT.format(before=before, options=options, after=after, call=call)
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    text = re.sub(r"\d\d:\d\d:\d\d", "TIME", done.stdout)
    found = re.fullmatch(r"(?s)<0>(.*)<\d+ records><1>(.*)<(\d+) records>", text)
    assert found, text
    errors = [re.sub(r'File "<string>", line \d+', "LINE", part) for part in done.stderr.split("--- Logging error ---")]
    assert len(errors) in (1, 3), "what is wrong with a line is said by both"
    return found[1], found[2], int(found[3])


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ("", _CALL),
        ("", 'log.info("Worker %s: ümlaut %s", "w", "\\u2713")'),
        ('date_format="%Y-%m %H:%M:%S"', _CALL),
    ],
)
def test_what_rq_set_up_is_written_without_a_record(options: str, call: str) -> None:
    """A line through RQ's own handlers has the text that logging gives it, and costs no LogRecord."""
    theirs, ours, records = _lines(options=options, call=call)
    assert ours == theirs != ""
    assert records == 0


@pytest.mark.parametrize(
    "change",
    [
        "root.addHandler(logging.StreamHandler(sys.stdout))",
        "logging.getLogger('rq').addHandler(logging.StreamHandler(sys.stdout))",
        "plain.addHandler(logging.StreamHandler(sys.stdout))",
        "plain.handlers.pop(0)",
        "plain.handlers.clear()",
        "plain.addFilter(lambda record: False)",
        "plain.handlers[0].addFilter(lambda record: False)",
        "plain.handlers[0].setLevel('WARNING')",
        "plain.handlers[1].filters.clear()",
        "plain.handlers[0].setFormatter(logging.Formatter('%(levelname)s %(funcName)s %(lineno)d %(message)s'))",
        "plain.handlers[0].setStream(open('/dev/null', 'w'))",
        "logging.setLogRecordFactory(lambda *a, **k: logging.LogRecord('x', 20, '', 0, 'of the factory', (), None))",
        "logging.Logger.callHandlers = lambda self, record: sys.stdout.write('patched')",
        "logging.Logger.handle = lambda self, record: sys.stdout.write('patched')",
        "logging.Logger.info = lambda self, *args, **options: sys.stdout.write('patched')",
        "plain.setLevel('WARNING')",
        "logging.disable(logging.INFO)",
        "plain.disabled = True",
    ],
)
def test_whatever_is_changed_later_is_respected(change: str) -> None:
    """From the moment in which anybody changes where lines go or how they look, they go there and look so."""
    theirs, ours, _records = _lines(after=change)
    assert ours == theirs


@pytest.mark.parametrize(
    ("before", "options"),
    [
        ("logging.basicConfig(stream=sys.stdout, format='%(process)d %(message)s')", ""),
        ("", 'log_format="%(levelname)s %(asctime)s %(message)s"'),
        ("logging.Logger.callHandlers = lambda self, record: sys.stdout.write('patched')", ""),
        ("logging.setLogRecordFactory(lambda *a, **k: logging.LogRecord('x', 20, '', 0, 'of the factory', (), None))", ""),
        ("class Mine(logging.Logger):\n  def info(self, *a): sys.stdout.write('mine')\nlogging.setLoggerClass(Mine)", ""),
    ],
)
def test_other_set_ups_are_left_to_logging(before: str, options: str) -> None:
    """Where logging was set up by somebody else, or is patched already, every line goes through it."""
    theirs, ours, _records = _lines(before, options)
    assert ours == theirs != ""


@pytest.mark.parametrize(
    "call",
    [
        'log.info("100 %")',
        'log.info("%(a)s", {"a": 1})',
        'log.info("Worker %s: %d", "w", "not a number")',
        'log.info("no place", 1)',
        'log.info("%s", 1, exc_info=ValueError("why"))',
        'log.info(ValueError("%s"), 1)',
        'log.warning("%s", 1)',
        'log.error("%s", 1)',
        'log.debug("%s", 1)',
    ],
)
def test_other_calls_do_what_logging_does(call: str) -> None:
    """Lines of other levels, and calls with other arguments or mistakes in them, end as in logging."""
    theirs, ours, _records = _lines(call=call)
    assert ours == theirs


def test_the_caller_is_named_where_a_format_asks_for_it() -> None:
    """A format with the caller's line names who logged, not our file."""
    _theirs, ours, _records = _lines(
        after="plain.handlers[0].setFormatter(logging.Formatter('%(filename)s %(funcName)s'))"
    )
    assert ours == "<string> <module>\n"
