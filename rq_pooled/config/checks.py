"""Checks settings: the type, range and form of each, and the relations between them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from ..durations import LONGEST
from ..errors import ConfigurationError
from .fields import Field, convert
from .own_urls import form_of, is_own_url, server_url
from .secrets import is_scheme, scrub, scrub_url

_SCHEMES = ("redis", "rediss", "unix")
_ALLOWED = r"[\w*]+(?:\.[\w*]+)*"
_MODULE_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"


def checked(
    table: Iterable[dataclasses.Field[Any]], values: Mapping[str, Any], sources: Mapping[str, str]
) -> dict[str, Any]:
    """Return ``values`` converted to their types.

    Args:
        table: all settings, as fields of a dataclass made with ``fields.setting``.
        values: the given values, by name.
        sources: where each value was found, for the message.

    Raises:
        ConfigurationError: a value is not allowed; one line that names the setting and says what to change.
    """
    fields = {field.name: field for field in table}
    result: dict[str, Any] = {}

    def refuse(name: str, problem: str, remedy: str) -> ConfigurationError:
        given = values.get(name, fields[name].default)
        # The message shows most of a URL, and nothing of other secrets, nor of a URL that is no text.
        if name == "url" and isinstance(given, str):
            shown = scrub_url(given)
        else:
            shown = "***" if fields[name].metadata["setting"].secret else scrub(str(given))
        shown = shown or "empty"
        source = sources.get(name, "the argument " + name if name in values else "the default")
        line = f"{name.upper()} is {shown} (from {source}): {problem}; {remedy}"
        return ConfigurationError(" ".join(line.split()))

    def value(name: str) -> Any:
        return result[name] if name in result else fields[name].default

    for name, raw in values.items():
        meta: Field = fields[name].metadata["setting"]
        try:
            result[name] = convert(raw, meta)
        except (TypeError, ValueError, OverflowError):
            raise refuse(name, f"it must be {meta.allowed or 'a text'}", "change it") from None
        number = result[name]
        if meta.kind not in (int, float) or number is None:
            continue
        if not math.isfinite(number):
            raise refuse(name, f"it must be {meta.allowed} and finite", "change it")
        if meta.low is not None and (number < meta.low or (meta.above and number == meta.low)):
            reason = " (2 for the roles of a worker, 1 for its jobs)" if name == "max_connections" else ""
            raise refuse(name, f"it must be {meta.allowed}{reason}", "raise it")
        if meta.high is not None and number > meta.high:
            raise refuse(name, f"it must be {meta.allowed}", "lower it")
        # Redis would refuse, in the middle of a script, a time whose milliseconds exceed 64 bits.
        if meta.unit == "s" and number > LONGEST:
            raise refuse(name, f"it must be at most {LONGEST} (100 years)", "lower it")

    if "url" in result and (problem := _url_problem(result["url"])):
        forms = "redis://host:port/db, rediss://host:port/db or unix:///path?db=0"
        raise refuse("url", problem, f"write it as {form_of(result['url']) if is_own_url(result['url']) else forms}")
    for name, pattern, form in (
        ("budget_name", r"[\w.-]+", "letters, digits, '.', '-' and '_'"),
        ("describe", _MODULE_NAME + r"\.\w+", "module.function"),
        ("app", _MODULE_NAME + r":[\w.]+(\(\))?", "module:app_or_factory"),
    ):
        if isinstance(value(name), str) and not re.fullmatch(pattern, value(name)):
            raise refuse(name, f"it must be written as {form}", "change it")
    if value("jobs_login") is not None and not re.fullmatch(r"[^:\s]+:\S+", value("jobs_login")):
        raise refuse("jobs_login", "it must be written as user:password, without white space", "change it")
    if value("signing") not in (None, "require", "accept-unsigned"):
        raise refuse("signing", "it must be require or accept-unsigned", "change it")
    if any(not re.fullmatch(_ALLOWED, one) for one in value("allowed")):
        raise refuse("allowed", "it must be dotted names, in which * stands for one name", "write shop.tasks.*")
    for name, kind in (("preload", "modules"), ("sweep_requeue", "exceptions")):
        if any(not re.fullmatch(_MODULE_NAME, one) for one in value(name)):
            raise refuse(name, f"it must be names of {kind}, separated by commas", "change it")
    if value("budget") is not None and value("budget_name") is None:
        raise refuse("budget", "it needs a name that all processes of the application share", "set BUDGET_NAME")

    pairs: tuple[tuple[str, str, Callable[[Any, Any], bool], str], ...] = (
        ("heartbeat_ttl", "heartbeat_interval", lambda ttl, interval: ttl > 2 * interval, "above twice"),
        ("abandon_after", "heartbeat_ttl", lambda after, ttl: after > ttl, "above"),
        ("reconnect_cap", "reconnect_base", lambda cap, base: cap >= base, "at least"),
        ("guard_stop", "guard_warn", lambda stop, warn: stop > warn, "above"),
    )
    for name, other, holds, relation in pairs:
        if not holds(value(name), value(other)):
            named = name if name in values or other not in values else other
            raise refuse(
                named,
                f"{name.upper()} ({value(name):g}) must be {relation} {other.upper()} ({value(other):g})",
                f"raise {name.upper()} or lower {other.upper()}",
            )
    return result


def _url_problem(url: str) -> str | None:
    """Return a text about the error in a server's URL, or None."""
    scheme, colon, _ = url.partition("://")
    if not colon:
        return "it has no scheme"
    if scheme not in _SCHEMES and not is_own_url(url):
        return f"the scheme {scheme!r} is unknown" if is_scheme(scheme) else "its scheme is unknown"
    if re.search(r"[\s\x00-\x1f]", url):
        return "it contains white space (encode it with %20)"
    if is_own_url(url):
        try:
            server_url(url)
        except ValueError as error:
            return str(error)
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "its host or port is malformed (a '/', '#' or '?' in a password is written as %2F, %23, %3F)"
    if parts.fragment:
        return "it contains a '#' (in a password it is written as %23)"
    if scheme == "unix":
        return None if parts.path.strip("/") else "it has no path of a socket"
    if "%40" in (parts.hostname or ""):
        return "its host contains %40 (the '@' before a host is written as it is)"
    if port == 0 or "@" in parts.path:
        return "its host or port is malformed (a '/' in a password is written as %2F)"
    if not re.fullmatch(r"/?\d*/?", parts.path):
        return "its database is not a number"
    return None
