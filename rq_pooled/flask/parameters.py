"""The parameters of requests: one that is not known, or cannot be used, is refused and named."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any
from urllib.parse import parse_qsl, urlencode

from flask import current_app, request, url_for

from ..errors import ConfigurationError
from ..foreign import printable

#: Bytes of a POST that are read, and what a form is sent as.
_MAX_BODY = 64 * 1024
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


def posted(*known: str, may_be_empty: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the parameters of a POST, from its form or its JSON.

    One that is not known is refused: without a misspelt ``older-than`` more jobs would change than were meant.

    Args:
        known: their names.
        may_be_empty: those that count as not given where a form sends nothing in them.

    Raises:
        ConfigurationError: a parameter or the body cannot be used.
    """
    if request.args:
        raise ConfigurationError("parameters belong into the body, as a form or as JSON, not into the address")
    if not _is_small():
        size = request.content_length
        if size is None:
            raise ConfigurationError("the body has no length: send it with Content-Length")
        raise ConfigurationError(f"the body has {size} bytes: at most {_MAX_BODY} are read")
    given: Any
    if request.is_json:
        try:
            given = json.loads(request.get_data(), object_pairs_hook=_once_each)
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict):
            raise ConfigurationError("the body is no JSON object")
    elif request.mimetype in _FORMS or not request.get_data():
        # Several values, and files, are as unknown as other names.
        given = {name: values[0] if len(values) == 1 else values for name, values in request.form.lists()}
        given.update(dict.fromkeys(request.files, None))
        for name in ("page", "csrf_token", str(current_app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token"))):
            # The page's own forms have these.
            given.pop(name, None)
        given = {name: value for name, value in given.items() if value or name not in may_be_empty}
    else:
        raise ConfigurationError(f"the body is {request.mimetype or 'of no type'}: send a form, or application/json")
    for name, value in given.items():
        if name not in known:
            raise ConfigurationError(f"there is no parameter {printable(name, 50)!r}: use {', '.join(known)}")
        if isinstance(value, int) and name != "queue" and 0 <= value <= 999_999_999:
            given[name] = str(int(value))
        elif not isinstance(value, str) or not value:
            raise ConfigurationError(
                f"{name} is {printable(value, 50)!r}: give one text that is not empty, or leave it out"
            )
        elif any("\ud800" <= character <= "\udfff" for character in value):
            raise ConfigurationError(f"{name} is {printable(value, 50)!r}: a half of a surrogate pair is no text")
    return dict(given)


def page_of_form() -> str:
    """Return the page whose button sent the request, "" if a program did, or if its body is not read."""
    return request.form.get("page", "") if _is_small() else ""


def list_address() -> str:
    """Return the address of the list of jobs that the request was sent from, "" if it does not say."""
    back = urlencode(parse_qsl(request.args.get("back", "")))
    return f"{url_for('.failed')}?{back}" if back else ""


def _is_small() -> bool:
    """Tell whether the body may be read: the files of a form would fill the disk."""
    size = request.content_length
    return "Transfer-Encoding" not in request.headers if size is None else size <= _MAX_BODY


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs; a name that comes twice cannot be used, as in a form."""
    given = dict(pairs)
    given.update(dict.fromkeys((name for name, times in Counter(name for name, _ in pairs).items() if times > 1), None))
    return given


def queue_of(given: dict[str, str]) -> str:
    if "queue" not in given:
        raise ConfigurationError("queue is missing: give the name of one")
    return given["queue"]


def flag(given: dict[str, str], name: str) -> bool:
    value = given.get(name, "0")
    if value not in ("0", "1"):
        raise ConfigurationError(f"{name} is {printable(value, 50)!r}: give 1, or leave it out")
    return value == "1"


def asked_for(*known: str) -> dict[str, str]:
    """Return the parameters of a GET. Raises ConfigurationError: one is not known, or is given twice."""
    for name, values in request.args.lists():
        if name not in known or len(values) > 1:
            raise ConfigurationError(f"{printable(name, 50)!r} cannot be used, or only once: give {', '.join(known)}")
    return {name: value for name, value in request.args.items() if value}


def number(given: dict[str, str], name: str, default: int) -> int:
    value = given.get(name, str(default))
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise ConfigurationError(f"{name} is {printable(value, 50)!r}: give a whole number from 0")
    return int(value)
