"""``redact``: describes a call with its secrets left out, by the names of its arguments. Nothing is imported for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

#: What stands in place of a value whose name says that it is secret, and of any other value that is not shown.
REDACTED, LEFT_OUT = "[redacted]", "…"
#: Names that contain one of these, and names of which a part is one of those.
_WITHIN = re.compile(
    "passw|passphrase|secret|token|(api|private|access)_?key|credential|authori[sz]ation|cookie|signature",
    re.IGNORECASE,
)
_PARTS = frozenset(
    ("auth", "pwd", "pw", "session", "sid", "csrf", "xsrf", "dsn", "pin", "cvv", "cvc", "iban", "ssn", "otp", "card")
)
#: Characters of a text that is shown, and of a description that is taken apart.
_LONGEST, _MOST = 75, 4000
_CALL = re.compile(r"([^\s()]+)\((.*)\)", re.DOTALL)
_BEGINS = re.compile(r"\s*[^\s()]+\(")
#: One argument with its name, as Python or we write a plain value; or one that we have left out.
_ARGUMENT = re.compile(
    r"(?:(\w{1,100})=)?('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|-?\d[\d.e+-]*|True|False|None|\[redacted\]|…)(?:, |$)"
)


class Call(NamedTuple):
    """What a job calls. Where a job is only shown, its arguments are not known: ``args`` and ``kwargs`` are None."""

    function: str
    #: The arguments whose names are not known, and those by name.
    args: tuple[Any, ...] | None
    kwargs: Mapping[str, Any] | None
    #: RQ's own description, or the one in the job's hash.
    text: str


def redact(call: Call) -> str:
    """Return the function and its arguments: plain values by name, secret ones and all others left out."""
    if call.args is None or call.kwargs is None:
        return _redacted(call.text)
    parts = [LEFT_OUT] * len(call.args)
    return (
        f"{call.function}({', '.join([*parts, *(f'{name}={_value(name, one)}' for name, one in call.kwargs.items())])})"
    )


def without_arguments(text: str) -> str:
    """Return a description with no more than the function's name in it."""
    found = _CALL.match(text[:_MOST] + ")")
    return f"{found[1]}({LEFT_OUT})" if found else LEFT_OUT


def is_secret(name: str) -> bool:
    """Tell whether a name says that its value is secret."""
    parts = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower().split("_")
    return bool(_WITHIN.search(name)) or not _PARTS.isdisjoint(parts)


def _value(name: str, value: Any) -> str:
    if is_secret(name):
        return REDACTED
    if value is None or type(value) in (bool, int, float):
        return repr(value)[:_LONGEST]
    # A login in a URL has no name.
    return repr(value) if type(value) is str and len(value) <= _LONGEST and "://" not in value else LEFT_OUT


def _redacted(text: str) -> str:
    """Return a description as RQ or ``redact`` has made it; a text of another form is a person's, and stays."""
    found = _CALL.fullmatch(text) if len(text) <= _MOST else None
    if found is None:
        return without_arguments(text) if _BEGINS.match(text) else text
    name, arguments = found.groups()
    parts, at = [], 0
    while at < len(arguments):
        one = _ARGUMENT.match(arguments, at)
        if one is None:
            return without_arguments(text)
        named, value = one.groups()
        hidden = value in (REDACTED, LEFT_OUT)
        if named is None:
            parts.append(LEFT_OUT)
        else:
            kept = value if hidden else REDACTED if is_secret(named) else LEFT_OUT if "://" in value else value
            parts.append(f"{named}={kept}")
        at = one.end()
    return f"{name}({', '.join(parts)})"
