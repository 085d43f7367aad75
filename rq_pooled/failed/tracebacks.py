"""Finds the exception and the message with which a recorded traceback ends. Nothing is unpickled or imported."""

from __future__ import annotations

import re

from ..retry.exception_names import NAME

#: The line that chains a second traceback to the first; without it, a second traceback is part of a message.
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_TRACEBACK = "Traceback (most recent call last):"
#: The prefix of each line about an exception group.
_GROUP_MARGIN = re.compile(r"^\s*[|+] ?")
#: The text that RQ writes instead of a traceback for an abandoned job.
_DUE_TO = re.compile(r"due to (\w+),")
_FRAME = re.compile(r'^  File ".*", line \d+', re.MULTILINE)
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*)(?::|$)", re.MULTILINE)


def recorded_name(text: str) -> str:
    """Return the name of the exception with which a traceback ends, empty if none is named.

    The message of the exception is ignored, even if it contains tracebacks.
    """
    return recorded_end(text)[0]


def recorded_end(text: str) -> tuple[str, str]:
    """Return the same name, and the line that begins with it, empty if there is none."""
    found, said, expecting, in_frames, in_group = "", "", True, False, False
    for line in text.splitlines():
        bare = _GROUP_MARGIN.sub("", line) if in_group or line.endswith("+ Exception Group " + _TRACEBACK) else line
        if expecting and bare.endswith(_TRACEBACK):
            in_frames, expecting, in_group = True, False, bare != line
        elif in_frames and bare.strip() and not bare.startswith(" "):
            match = NAME.match(bare)
            found, said, in_frames = match.group() if match else "", bare, False
        elif bare.strip() in _CHAINED:
            expecting = True
    if not found and _TRACEBACK not in text:
        due = _DUE_TO.search(text)
        found = f"rq.exceptions.{due.group(1)}" if due else ""
    return found, said


def exception_of(text: str) -> tuple[str, str]:
    """Return a traceback's exception name with its module, or "", and its message in one line."""
    # The sweeper selects jobs by the same name.
    name, said = recorded_end(text)
    if said:
        return name, said.strip()[:500]
    frames = list(_FRAME.finditer(text))
    start = frames[-1].end() if frames else 0
    match = _EXCEPTION.search(text, start) if frames else None
    said = text[match.start() :] if match else text
    line = next((line for line in said.splitlines() if line.strip()), "")
    return name or (match.group(1) if match else ""), line.strip()[:500]
