"""Removes passwords from texts for messages and logs."""

from __future__ import annotations

import re

_RUN = re.compile(r"[^\s'\"]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}://")
_SECRET = r"(?:password|passwd|secret|token)="
#: What follows an ``&`` and is no parameter belongs to the password before it.
_SECRET_IN_QUERY = re.compile(rf"({_SECRET})[^&\s'\"]*(?:&[^&=\s'\"]*(?![^&\s'\"]))*", re.IGNORECASE)
#: The same where all of the text is one URL: a server takes a password with a quote or a space that is not encoded.
_SECRET_IN_URL = re.compile(rf"({_SECRET})[^&]*(?:&[^&=]*(?![^&]))*", re.IGNORECASE)
_SECRET_PARAMETER = re.compile(rf"(?:^|[?])\w*{_SECRET}", re.IGNORECASE)
#: The text that may follow the colon of a host; our own messages write the word "port" there.
_PORT = re.compile(r"\d{0,5}|port")


def scrub(text: str) -> str:
    """Return ``text`` with ``***`` for the login and the password parameters of every URL in it.

    It takes linear time, because texts of any size from servers and jobs pass through it.
    """
    return _RUN.sub(lambda run: _scrub_run(run[0]), text)


def message_of(error: object) -> str:
    """Return an error's message in one line and without passwords, or the name of its type if it has no message."""
    words = " ".join(scrub(str(error)).split())
    return words or (type(error).__name__ if isinstance(error, BaseException) else "")


def scrub_url(url: str) -> str:
    """Return one URL, even a malformed one, with ``***`` for all that stands before its last ``@``."""
    url = _without_ats(url)
    head, at, tail = url.rpartition("@")
    if not at:
        return _SECRET_IN_URL.sub(r"\1***", _without_login(url))
    scheme, colon, _ = head.partition("://")
    scheme = scheme if is_scheme(scheme) else "***"
    return _SECRET_IN_URL.sub(r"\1***", (scheme + colon if colon else "") + "***@" + tail)


def is_scheme(text: str) -> bool:
    """Tell whether a text before ``://`` may be shown: what is no scheme may be part of a password."""
    return _SCHEME.fullmatch(f"{text}://") is not None


def _scrub_run(run: str) -> str:
    if "://" in run:
        run = _without_ats(run)
        found = _SCHEME.search(run)
        if found is not None and (at := run.rfind("@")) >= found.end():
            run = run[: found.end()] + "***" + run[at:]
        else:
            run = _without_login(run)
    return _SECRET_IN_QUERY.sub(r"\1***", run) if "=" in run else run


def _without_ats(url: str) -> str:
    """Return ``url`` with an ``@`` in place of each password parameter that contains one.

    The text behind that ``@`` would be taken for the host. The text before it is hidden, too, because a ``?`` in the
    login hides where the login ends.
    """
    kept = ""
    for number, part in enumerate(url.split("&")):
        found = _SECRET_PARAMETER.search(part) if number or "?" in part else None
        if found is not None and not number and found.start() == 0 and part[0] != "?":
            found = _SECRET_PARAMETER.search(part, 1)
        if found is not None and "@" in part[found.end() :]:
            kept += ("&" if number and found.start() else "") + part[: found.start()] + "@"
        else:
            kept += ("&" if number else "") + part
    return kept


def _without_login(url: str) -> str:
    """Return a URL without an ``@``, with ``***`` for all of it where its host has ``%40``, or a colon and no port.

    The text may be a password whose ``@`` was forgotten or encoded, and its end is unknown.
    """
    found = _SCHEME.search(url)
    if found is None:
        return url
    hosts = re.split("[/?#]", url[found.end() :], maxsplit=1)[0]
    ports = [re.sub(r"^\[[^\]]*\]", "", host).partition(":") for host in hosts.split(",")]
    are_ports = all(_PORT.fullmatch(port) and int(port if port.isdigit() else 0) <= 65535 for _, _, port in ports)
    if are_ports and "%40" not in hosts:
        return url
    return url[: found.end()] + "***"
