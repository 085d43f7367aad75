"""What a parent and its horse say to each other, and how the parent looks at what a horse says before it believes it.

To a horse. A claim is the tuple of store/claim.py. What has one is answered by an outcome, a failure or gone; the
tasks without one have no answer. Each task ends with free.

========= =================================================== =========================================================
perform   claim, further ones                                 task: run the job; then the others, each with its permit
bury      claim, pid, status, usage, stopped, quietly         task: record the end of a job whose horse died
abandon   claim, reason, quietly                              task: fail a job that has stalled too often
fail      claim, reason                                       task: fail a job whose outcome the server refused
settle    claim, tolerant, status, packed commands (3 words)  task: complete the outcome of a job that has dependents
maintain  command                                             task: do this, then RQ's maintenance, then the sweeps
schedule  token, life                                         task: move rq-scheduler's due jobs under this lock
reply     replies, or why there are none                      answers read and relay
committed recorded                                            answers an outcome with a receipt: was it recorded?
begin                                                         answers next: the streams of the last job are closed
========= =================================================== =========================================================

From a horse.

======== ==================================================== =========================================================
free     leaving, seconds that the job took, if one did       the task is over; the horse ends if ``leaving``
next     waits, seconds that the job took                     the job is over; the next begins, if it has its permit.
                                                              ``waits`` asks for begin
phase    seconds                                              what begins now takes so long at most; -1 for ever
read     commands                                             reads on which an outcome depends
relay    commands                                             commands for the parent's connection
failure  reason                                               the job, or its outcome, cannot pass: fail it plainly
gone                                                          the job was deleted before it could be read
plain    free, seconds, number of words, words in RESP        the outcome of a plain success of a job that has not used
                                                              Redis, then free or next
outcome  status, guards, commands, dependents, receipt        see ``Outcome`` in store/commit.py; wire.py packs each
                                                              part. ``receipt`` asks for committed
======== ==================================================== =========================================================
"""

from __future__ import annotations

import sys
from typing import Any

from ..connection.command_table import is_harmless

#: The types of what follows the kind of a message, where that says all.
_SHAPES: dict[str, tuple[type, ...]] = {"free": (bool,), "next": (bool, float), "failure": (str,), "gone": ()}
_PLAIN = (bool, float, int, bytes)
#: Bytes that say how long a word is, to the bytes that it has with them and its end: looked up, not computed.
_LENGTHS: dict[bytes, int] = {}
_MAX_LENGTHS = 10_000
#: What a short word begins with, to its length; and the most words of a run that is looked at as a whole.
_SHORT = {b"$%d" % number: number for number in range(1000)}
_FEW = 64
#: The longest word that Redis takes.
_MAX_WORD = 512 * 1024 * 1024
#: An outcome's status is shown to people and compared with RQ's.
_MAX_STATUS = 64


def check_message(message: Any) -> None:
    """Raise unless a horse that does what it should may have sent ``message``.

    Raises:
        ValueError: with what is wrong. It never contains what the message holds.
    """
    if type(message) is not tuple or not message or type(message[0]) is not str:
        raise ValueError("a message is a tuple that begins with its kind")
    kind, size = message[0], len(message)
    if kind == "outcome":
        if size != 6 or type(message[1]) is not str or len(message[1]) > _MAX_STATUS or type(message[5]) is not bool:
            raise ValueError("an outcome is a status, three packed parts, and whether a receipt is wanted")
        if not (message[1].isascii() and message[1].isprintable()):
            raise ValueError("the status of an outcome is no word")
        _check_part(message[2], 1)
        _check_part(message[3], 0)
        _check_part(message[4], 0)
    elif kind == "plain":
        # Those of the channel's own form; a horse may also marshal such a message.
        if tuple(map(type, message[1:])) != _PLAIN or not 0 <= message[2] < sys.float_info.max:
            raise ValueError("a plain outcome is followed by a flag, seconds, a number of words, and bytes")
        if not _is_one_run(1, message[3], message[4]):
            _check_part((1, message[3], message[4]), 0)
    elif kind == "phase":
        # A float is bounded. A whole number is not, and arithmetic with a huge one raises.
        if size != 2 or type(message[1]) not in (int, float) or not abs(message[1]) <= sys.float_info.max:
            raise ValueError("a phase is a number of seconds")
    elif kind == "free" and size == 3 or kind == "next":
        if tuple(map(type, message[1:])) != _SHAPES["next"] or not 0 <= message[2] < sys.float_info.max:
            raise ValueError(f"{kind} is followed by a flag and seconds")
    elif kind in _SHAPES:
        if tuple(map(type, message[1:])) != _SHAPES[kind]:
            raise ValueError(f"what follows {kind} is not of the types {[one.__name__ for one in _SHAPES[kind]]}")
    elif kind in ("read", "relay"):
        if size != 2 or type(message[1]) is not list:
            raise ValueError(f"{kind} is followed by a list of commands")
        for command in message[1]:
            if type(command) is not list or not command or any(type(word) is not bytes for word in command):
                raise ValueError(f"a command to {kind} is a list of bytes, not empty")
        _check_harmless(message[1])
    else:
        raise ValueError("its kind is unknown")


def _check_harmless(commands: list[list[bytes]]) -> None:
    """Raise if a command would leave the parent's connection to the server waiting, or another than it was."""
    names = [words[0].upper() for words in commands]
    whole = len(names) > 1 and names[0] == b"MULTI" and names[-1] == b"EXEC"
    for words, name in zip(commands[1:-1] if whole else commands, names[1:-1] if whole else names):
        if name not in (b"WATCH", b"UNWATCH") and not is_harmless(words):
            raise ValueError("a command would wait, or change the connection of the parent")


def _check_part(part: Any, before: int) -> None:
    """Raise unless ``part`` is a number of runs, of words, and those words in RESP, exactly.

    A run is ``before`` words, the number of the others, and these. One word more or less would shift what the script
    and the server read after it, which belongs to other jobs.
    """
    if type(part) is not tuple or len(part) != 3:
        raise ValueError("a part of an outcome is two numbers and bytes")
    runs, words, data = part
    if type(runs) is not int or type(words) is not int or type(data) is not bytes:
        raise ValueError("a part of an outcome is two numbers and bytes")
    if not before and _is_one_run(runs, words, data):
        return
    position, end, found, begun = 0, len(data), 0, 0
    # Words until the next one that tells how many belong to its run.
    due = before
    index, lengths = data.index, _LENGTHS
    try:
        while position < end:
            start = index(b"\n", position) + 1
            head = data[position:start]
            position = start + (lengths.get(head) or _length(head))
            found += 1
            if due:
                due -= 1
                continue
            count = data[start : position - 2]
            if not count.isdigit() or (due := int(count)) == 0:
                raise ValueError
            due += before
            begun += 1
    except ValueError:
        raise ValueError("the words of an outcome are not in RESP, or not in runs") from None
    if position != end or found != words or begun != runs or due != before:
        raise ValueError(f"a part of an outcome does not have the {runs} runs and {words} words that it tells of")


def _is_one_run(runs: int, words: int, data: bytes) -> bool:
    """Tell whether ``data`` is one run of short words without line breaks, which takes a third of the time."""
    parts = data.split(b"\r\n") if runs == 1 and 2 <= words <= _FEW else []
    if len(parts) != 2 * words + 1 or parts[1] != b"%d" % (words - 1) or parts[-1]:
        return False
    return list(map(_SHORT.get, parts[:-1:2])) == list(map(len, parts[1::2]))


def _length(head: bytes) -> int:
    """Return how many bytes a word and its end have, which begins with ``head``."""
    if not head.startswith(b"$") or not head.endswith(b"\r\n") or not head[1:-2].isdigit() or len(head) > 13:
        raise ValueError
    length = int(head[1:-2])
    if length > _MAX_WORD:
        raise ValueError
    if len(_LENGTHS) < _MAX_LENGTHS:
        _LENGTHS[head] = length + 2
    return length + 2
