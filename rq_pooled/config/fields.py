"""Describes a setting: its type, its allowed values, and the conversion from text."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import Any, NamedTuple

from ..durations import parse_duration
from ..errors import ConfigurationError


class SettingInfo(NamedTuple):
    """One row of the table of settings, as documentation and command line options need it."""

    name: str
    env: tuple[str, ...]
    default: Any
    unit: str
    type: type
    optional: bool
    description: str
    allowed: str
    secret: bool


class Field(NamedTuple):
    """The description of a setting, besides its name and default."""

    kind: type
    description: str
    unit: str
    low: float | None
    high: float | None
    above: bool
    optional: bool
    env: tuple[str, ...]
    secret: bool

    @property
    def allowed(self) -> str:
        """The allowed range in words, empty for an unlimited setting."""
        if self.kind not in (int, float):
            return ""
        parts = ["a whole number" if self.kind is int else "a number"]
        if self.low is not None:
            parts.append(f"{'above' if self.above else 'of at least'} {self.low:g}")
        if self.high is not None:
            parts.append(f"{'and ' if self.low is not None else ''}at most {self.high:g}")
        return " ".join(parts) + (", or none" if self.optional else "")


def setting(
    default: Any,
    kind: type,
    description: str,
    unit: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    above: bool = False,
    env: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """Return a field of the dataclass ``Settings``.

    Args:
        low: the least value; with ``above``, values must be greater than it.
        high: the largest value.
        env: further environment variables, besides the one with our prefix.
        secret: the value is left out of ``repr``, and never shown.
    """
    meta = Field(kind, description, unit, low, high, above, default is None, env, secret)
    return dataclasses.field(default=default, repr=not secret, metadata={"setting": meta})


def convert(raw: Any, meta: Field) -> Any:
    """Return ``raw``, often a text, as the type of its setting. Raises ValueError or TypeError."""
    if meta.optional and (raw is None or (isinstance(raw, str) and raw.strip().lower() in ("", "none"))):
        return None
    if meta.kind is tuple:
        names = raw.split(",") if isinstance(raw, str) else list(raw)
        return tuple(name.strip() for name in names if name.strip())
    if meta.kind is object and callable(raw):
        return raw
    if meta.kind in (str, object):
        if not isinstance(raw, str):
            raise TypeError
        return raw.strip()
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        raise TypeError
    is_switch = (meta.low, meta.high, meta.kind) == (0, 1, int)
    if isinstance(raw, str) and is_switch:
        raw = {"yes": "1", "no": "0"}.get(raw.strip().lower(), raw)
    if meta.unit == "s" and isinstance(raw, str) and raw.strip()[-1:].isalpha():
        # A duration as commands take it, such as 1m30s; else it is wrong as a number.
        with suppress(ConfigurationError):
            raw = parse_duration(raw)
    if meta.kind is float or isinstance(raw, str):
        return meta.kind(raw)
    if raw != int(raw):
        raise ValueError
    return int(raw)
