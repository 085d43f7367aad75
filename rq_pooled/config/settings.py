"""One frozen ``Settings``: the only home of defaults, where values come from, and every check of them."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..durations import LONGEST
from ..errors import ConfigurationError
from .host_url import url_of_host
from .sentinel_url import FORM as SENTINEL_FORM
from .sentinel_url import is_sentinel_url, parse_sentinel_url

PREFIX = "RQ_POOLED_"
_SCHEMES = ("redis", "rediss", "unix")
_RUN = re.compile(r"[^\s'\"]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}://")
_SECRET = r"(?:password|passwd|secret|token)="
_SECRET_IN_QUERY = re.compile(rf"({_SECRET})[^&\s'\"]*", re.IGNORECASE)
_SECRET_PARAMETER = re.compile(rf"(?:^|[?])\w*{_SECRET}", re.IGNORECASE)
#: What may stand behind a colon in a network location, "port" being the word of our own messages.
_PORT = re.compile(r"\d{0,5}|port")
_MODULE_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"


def scrub(text: str) -> str:
    """Return ``text`` with the user information and password parameters of every URL in it replaced by ``***``.

    Takes time in proportion to the text, whatever stands in it: what a server or a job says comes through here.
    """
    return _RUN.sub(lambda run: _scrub_run(run[0]), text)


def message_of(error: object) -> str:
    """Return what an error says, in one line and without passwords: what a server or a user's code said may be in
    it.
    """
    return " ".join(scrub(str(error)).split())


def scrub_url(url: str) -> str:
    """Return one URL, however malformed, fit for a message: what stands before its last ``@`` is ``***``."""
    url = _without_ats(url)
    head, at, tail = url.rpartition("@")
    if not at:
        return _SECRET_IN_QUERY.sub(r"\1***", _without_login(url))
    scheme, colon, _ = head.partition("://")
    return _SECRET_IN_QUERY.sub(r"\1***", (scheme + colon if colon else "") + "***@" + tail)


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
    """Return ``url`` with an ``@`` in the place of each password parameter that has one.

    What follows that ``@`` would pass for the host. Nothing before it may be shown either: with a ``?`` in the login
    nothing tells where that ends.
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
    """Return a URL without an ``@`` with ``***`` for what would be the host, if that has a port which is none.

    So a password is not shown whose ``@`` was forgotten; where it ends nothing tells.
    """
    found = _SCHEME.search(url)
    if found is None:
        return url
    rest, question, query = url[found.end() :].partition("?")
    hosts = re.split("[/#]", rest, maxsplit=1)[0]
    ports = [re.sub(r"^\[[^\]]*\]", "", host).partition(":") for host in hosts.split(",")]
    if all(_PORT.fullmatch(port) and not int(port if port.isdigit() else 0) > 65535 for _, _, port in ports):
        return url
    return url[: found.end()] + "***" + question + query


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


class _Meta(NamedTuple):
    """What is known about a setting besides its name and default."""

    kind: type
    description: str
    unit: str
    low: float | None
    high: float | None
    above: bool
    optional: bool
    env: tuple[str, ...]

    @property
    def allowed(self) -> str:
        """The allowed range in words, empty where anything goes."""
        if self.kind not in (int, float):
            return ""
        parts = ["a whole number" if self.kind is int else "a number"]
        if self.low is not None:
            parts.append(f"{'above' if self.above else 'of at least'} {self.low:g}")
        if self.high is not None:
            parts.append(f"{'and ' if self.low is not None else ''}at most {self.high:g}")
        return " ".join(parts) + (", or none" if self.optional else "")


def _setting(
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
    meta = _Meta(kind, description, unit, low, high, above, default is None, env)
    return dataclasses.field(default=default, repr=not secret, metadata={"setting": meta})


@dataclass(frozen=True)
class Settings:
    """All settings of rq_pooled, checked; times are seconds unless said. ``repr`` leaves out the URL (its password).

    Raises:
        ConfigurationError: a value is not allowed; one line that names the setting and says what to change.
    """

    url: str = _setting(
        "redis://localhost:6379/0",
        str,
        "where the server is: redis://, rediss:// (TLS), unix:// or sentinel://",
        env=("RQ_REDIS_URL", "REDIS_URL"),
        secret=True,
    )
    max_connections: int = _setting(
        10,
        int,
        "bound of one web process's pool; a worker may lend its jobs this many less 3, or CONCURRENCY if that is more",
        "connections",
        low=3,  # the two roles of a worker and one for its jobs
        high=100_000,
    )
    pool_timeout: float = _setting(20.0, float, "longest wait for a free connection, then PoolExhausted", "s", low=0)
    enqueue_deadline: float = _setting(
        2.0,
        float,
        "longest time that an enqueue waits for the server in all, outside of jobs, then RedisUnavailable; 0 waits "
        "as long as the other settings allow",
        "s",
        low=0,
    )
    breaker_delay: float = _setting(
        1.0,
        float,
        "after the server could not be used, enqueueing fails at once for this long, then one call tries; 0 always "
        "tries",
        "s",
        low=0,
    )
    socket_timeout: float = _setting(5.0, float, "longest wait for the reply to a command", "s", low=0, above=True)
    socket_connect_timeout: float = _setting(5.0, float, "longest wait while connecting", "s", low=0, above=True)
    block: float = _setting(
        60.0, float, "longest sleep of the wake connection before it is probed", "s", low=0, above=True
    )
    keepalive_idle: int = _setting(60, int, "TCP keepalive: idle time before the first probe", "s", low=1, high=32767)
    keepalive_interval: int = _setting(10, int, "TCP keepalive: time between probes", "s", low=1, high=32767)
    keepalive_count: int = _setting(
        3, int, "TCP keepalive: unanswered probes until it is lost", "probes", low=1, high=127
    )
    health_check_interval: float = _setting(
        30.0,
        float,
        "a connection idle for longer is PINGed before use; pool statistics are logged at this pace; 0 switches both "
        "off",
        "s",
        low=0,
    )
    max_idle: float = _setting(
        300.0, float, "a pooled connection not needed for this long is closed; 0 keeps it", "s", low=0
    )
    max_lifetime: float = _setting(
        3600.0, float, "a pooled connection is renewed between uses after this age (jittered); 0 never", "s", low=0
    )
    leak_warn: float = _setting(
        60.0, float, "a pooled connection held for longer is logged with its holder; 0 never", "s", low=0
    )
    jobs_share: int = _setting(
        1,
        int,
        "1 (yes): jobs use Redis through their worker, over one connection for all; 0 (no): each horse has connections "
        "of its "
        "own, which it keeps, for jobs that send tens of thousands of commands",
        low=0,
        high=1,
    )
    reconnect_base: float = _setting(0.1, float, "first delay before connecting again", "s", low=0, above=True)
    reconnect_cap: float = _setting(3.0, float, "longest delay before connecting again", "s", low=0, above=True)
    reconnect_attempts: int = _setting(
        0, int, "give up after so many attempts to connect again; 0 never", "attempts", low=0
    )
    concurrency: int = _setting(
        1,
        int,
        "horses of a worker: how many jobs it runs at once; 1 keeps stock RQ's order",
        "horses",
        low=1,
        high=10_000,
        env=("QUEUE_CONCURRENCY",),
    )
    max_jobs_per_horse: int = _setting(1000, int, "replace a horse after so many jobs", "jobs", low=1)
    max_horse_memory: int | None = _setting(None, int, "replace a horse whose memory is above this", "MB", low=1)
    heartbeat_interval: float = _setting(15.0, float, "time between renewals of the leases", "s", low=0, above=True)
    heartbeat_ttl: float = _setting(
        60.0, float, "how long a silent worker keeps its leases (server time)", "s", low=0, above=True
    )
    abandon_after: float = _setting(
        900.0, float, "when RQ's own tools give up on a running job nobody renews", "s", low=0, above=True
    )
    stalled_interval: float = _setting(30.0, float, "how often expired leases are looked for", "s", low=0, above=True)
    max_stalls: int = _setting(3, int, "how often a job may stall before it fails", "stalls", low=0)
    kill_grace: float = _setting(
        10.0, float, "time past the timeout of a job or callback before its horse is killed", "s", low=0
    )
    shutdown_timeout: float | None = _setting(
        None, float, "after this, a warm shutdown stops running jobs and puts them back; none waits, as RQ", "s", low=0
    )
    guard_warn: float = _setting(
        0.8, float, "share of the server's connections in use at which the guard warns", low=0, above=True, high=1
    )
    guard_stop: float = _setting(
        0.95,
        float,
        "share of the server's connections in use at which nothing new is opened",
        low=0,
        above=True,
        high=1,
    )
    guard_interval: float = _setting(15.0, float, "how often the guard asks the server", "s", low=0, above=True)
    guard_wait: float = _setting(
        60.0, float, "how long a starting worker waits for the server, and to be admitted", "s", low=0
    )
    guard_maxclients: int | None = _setting(
        None,
        int,
        "clients that the server allows, where it does not say so itself or another limit counts",
        "clients",
        low=1,
    )
    budget: int | None = _setting(
        None, int, "connections that all processes of the application may reserve together", "connections", low=1
    )
    budget_name: str | None = _setting(
        None, str, "name of the application, for its budget and in CLIENT LIST; none takes the program's name"
    )
    sweep_ghosts: int = _setting(
        1,
        int,
        "1: a worker's maintenance drops entries of failed jobs whose job is gone; 0: it does not",
        low=0,
        high=1,
    )
    sweep_requeue: tuple[str, ...] = _setting(
        (), tuple, "exceptions, separated by commas: a worker's maintenance requeues jobs that failed with one"
    )
    sweep_requeue_times: int = _setting(3, int, "how often SWEEP_REQUEUE requeues a job in all", "times", low=1)
    sweep_requeue_delay: float = _setting(
        60.0, float, "SWEEP_REQUEUE's first delay, scattered, doubled each time up to a day", "s", low=1, high=86_400
    )
    sweep_requeue_rate: float = _setting(
        100.0, float, "jobs per second that SWEEP_REQUEUE lets come due", "jobs/s", low=0, above=True
    )
    sweep_bury_after: float | None = _setting(
        None, float, "a worker's maintenance moves jobs that failed so long ago to the dead letters", "s", low=0
    )
    sweep_purge_after: float | None = _setting(
        None, float, "a worker's maintenance deletes jobs that failed so long ago", "s", low=0, above=True
    )
    sweep_keep: int | None = _setting(
        None, int, "a worker's maintenance deletes failed jobs beyond the newest so many of a queue", "jobs", low=1
    )
    sweep_dead_age: float = _setting(2_592_000.0, float, "how long SWEEP_BURY_AFTER keeps a dead letter", "s", low=1)
    sweep_dead_count: int = _setting(10_000, int, "dead letters that SWEEP_BURY_AFTER keeps per queue", "jobs", low=0)
    preload: tuple[str, ...] = _setting((), tuple, "modules imported before forking, separated by commas")
    app: str | None = _setting(
        None, str, "Flask app (module:app_or_factory), imported before forking, whose context wraps each job"
    )

    def __post_init__(self) -> None:
        fields = dataclasses.fields(self)
        values = {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != f.default}
        for name, value in _checked(values, {}).items():
            object.__setattr__(self, name, value)

    @classmethod
    def load(
        cls,
        arguments: Mapping[str, Any] | None = None,
        module: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        prefix: str = PREFIX,
    ) -> Settings:
        """Return the settings from everywhere: arguments over environment over settings module over defaults.

        Where no URL is set, REDIS_HOST names the server, with REDIS_PORT, REDIS_DB, REDIS_PASSWORD and REDIS_SSL as in
        RQ.

        Args:
            arguments: by lower-case name; ``None`` means not given.
            module: RQ's settings module (``-c``) or Flask's config as a mapping; keys ``RQ_POOLED_NAME`` or ``NAME``.
            environ: the environment, ``os.environ`` unless given; a variable that is set but empty counts as not set.
            prefix: of the variables and keys.

        Raises:
            ConfigurationError: an unknown argument, or a value that is not allowed.
        """
        arguments = {name: value for name, value in (arguments or {}).items() if value is not None}
        module = module or {}
        environ = os.environ if environ is None else environ
        known = [field.name for field in dataclasses.fields(cls)]
        for name in arguments:
            if name not in known:
                near = get_close_matches(name, known, 1)
                raise ConfigurationError(
                    f"there is no setting {name!r}" + (f": did you mean {near[0]!r}?" if near else "")
                )
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for info in cls.describe(prefix):
            found = _find(info, arguments, environ, module)
            if found is not None:
                sources[info.name], values[info.name] = found
        if "url" not in values:
            for source, named in (("the environment variable", environ), ("the settings module's", module)):
                try:
                    url = url_of_host(named)
                except ValueError as error:
                    raise ConfigurationError(f"{source} {error}") from None
                if url is not None:
                    sources["url"], values["url"] = f"{source} REDIS_HOST", url
                    break
        return cls(**_checked(values, sources))

    @classmethod
    def describe(cls, prefix: str = PREFIX) -> list[SettingInfo]:
        """Return one record for each setting, in the order of the table in docs/settings.md."""
        return [
            SettingInfo(
                field.name,
                (prefix + field.name.upper(), *meta.env),
                field.default,
                meta.unit,
                meta.kind,
                meta.optional,
                meta.description,
                meta.allowed,
            )
            for field, meta in ((field, field.metadata["setting"]) for field in dataclasses.fields(cls))
        ]


def _find(
    info: SettingInfo, arguments: Mapping[str, Any], environ: Mapping[str, str], module: Mapping[str, Any]
) -> tuple[str, Any] | None:
    """Return (where it was found, raw value) of a setting, or None."""
    if info.name in arguments:
        return f"the argument {info.name}", arguments[info.name]
    for name in info.env:
        if environ.get(name):
            return f"the environment variable {name}", environ[name]
    for name in (info.env[0], info.name.upper(), *info.env[1:]):
        if module.get(name) is not None:
            return f"{name} in the settings module", module[name]
    return None


def _checked(values: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    """Return ``values`` converted to their types, or raise ConfigurationError: the one place of all checks."""
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    result: dict[str, Any] = {}

    def refuse(name: str, problem: str, remedy: str) -> ConfigurationError:
        given = str(values.get(name, fields[name].default))
        shown = (scrub_url(given) if name == "url" else scrub(given)) or "empty"
        source = sources.get(name, "the argument " + name if name in values else "the default")
        line = f"{name.upper()} is {shown} (from {source}): {problem}; {remedy}"
        return ConfigurationError(" ".join(line.split()))

    def value(name: str) -> Any:
        return result[name] if name in result else fields[name].default

    for name, raw in values.items():
        meta: _Meta = fields[name].metadata["setting"]
        try:
            result[name] = _convert(raw, meta)
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
        # Redis refuses, in the middle of a script, times whose milliseconds exceed 64 bits.
        if meta.unit == "s" and number > LONGEST:
            raise refuse(name, f"it must be at most {LONGEST} (100 years)", "lower it")

    if "url" in result and (problem := _url_problem(result["url"])):
        forms = "redis://host:port/db, rediss://host:port/db or unix:///path?db=0"
        raise refuse("url", problem, f"write it as {SENTINEL_FORM if is_sentinel_url(result['url']) else forms}")
    for name, pattern, form in (
        ("budget_name", r"[\w.-]+", "letters, digits, '.', '-' and '_'"),
        ("app", _MODULE_NAME + r":[\w.]+(\(\))?", "module:app_or_factory"),
    ):
        if value(name) is not None and not re.fullmatch(pattern, value(name)):
            raise refuse(name, f"it must be written as {form}", "change it")
    if any(not re.fullmatch(_MODULE_NAME, module) for module in value("preload")):
        raise refuse("preload", "it must be names of modules, separated by commas", "change it")

    if value("budget") is not None and value("budget_name") is None:
        raise refuse("budget", "it needs a name that all processes of the application share", "set BUDGET_NAME")
    if any(not re.fullmatch(_MODULE_NAME, name) for name in value("sweep_requeue")):
        raise refuse("sweep_requeue", "it must be names of exceptions, separated by commas", "change it")

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


def _convert(raw: Any, meta: _Meta) -> Any:
    """Return ``raw``, often a text, as the type of its setting. Raises ValueError or TypeError."""
    if meta.optional and (raw is None or (isinstance(raw, str) and raw.strip().lower() in ("", "none"))):
        return None
    if meta.kind is tuple:
        names = raw.split(",") if isinstance(raw, str) else list(raw)
        return tuple(name.strip() for name in names if name.strip())
    if meta.kind is str:
        if not isinstance(raw, str):
            raise TypeError
        return raw.strip()
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        raise TypeError
    if isinstance(raw, str) and (meta.low, meta.high, meta.kind) == (0, 1, int):  # a switch
        raw = {"yes": "1", "no": "0"}.get(raw.strip().lower(), raw)
    if meta.kind is float or isinstance(raw, str):
        return meta.kind(raw)
    if raw != int(raw):
        raise ValueError
    return int(raw)


def _url_problem(url: str) -> str | None:
    """Return what is wrong with a server's URL, or None."""
    scheme, colon, _ = url.partition("://")
    if not colon:
        return "it has no scheme"
    if scheme not in _SCHEMES and not is_sentinel_url(url):
        return f"the scheme {scheme!r} is unknown"
    if re.search(r"[\s\x00-\x1f]", url):
        return "it contains white space (encode it with %20)"
    if is_sentinel_url(url):
        try:
            parse_sentinel_url(url)
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
    if port == 0 or ("@" in parts.path):
        return "its host or port is malformed (a '/' in a password is written as %2F)"
    if not re.fullmatch(r"/?\d*/?", parts.path):
        return "its database is not a number"
    return None
