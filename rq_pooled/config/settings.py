"""One frozen ``Settings``: the table of all settings with their defaults, and where values come from.

One table of everything that can be set makes this file long.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ..errors import ConfigurationError
from .checks import checked
from .fields import SettingInfo, setting
from .host_url import url_of_host
from .withheld import withheld

PREFIX = "RQ_POOLED_"


@dataclass(frozen=True)
class Settings:
    """All settings of rq_pooled, checked. Times are in seconds. ``repr`` leaves out the URL, which may hold a password.

    Raises:
        ConfigurationError: a value is not allowed; one line that names the setting and says what to change.
    """

    url: str = setting(
        "redis://localhost:6379/0",
        str,
        "where the server is: redis://, rediss:// (TLS), unix://, sentinel:// or cluster://",
        env=("RQ_REDIS_URL", "REDIS_URL"),
        secret=True,
    )
    max_connections: int = setting(
        10,
        int,
        "bound of one web process's pool; a worker may lend its jobs this many less 3, or CONCURRENCY if that is more",
        "connections",
        # A worker has two roles of its own, and one for its jobs.
        low=3,
        high=100_000,
    )
    pool_timeout: float = setting(20.0, float, "longest wait for a free connection, then PoolExhausted", "s", low=0)
    enqueue_deadline: float = setting(
        2.0,
        float,
        "longest time that an enqueue waits for the server in all, outside of jobs, then RedisUnavailable; 0 waits "
        "as long as the other settings allow",
        "s",
        low=0,
    )
    breaker_delay: float = setting(
        1.0,
        float,
        "after the server could not be used, enqueueing fails at once for this long, then one call tries; 0 always "
        "tries",
        "s",
        low=0,
    )
    socket_timeout: float = setting(5.0, float, "longest wait for the reply to a command", "s", low=0, above=True)
    socket_connect_timeout: float = setting(5.0, float, "longest wait while connecting", "s", low=0, above=True)
    block: float = setting(
        60.0, float, "longest sleep of the wake connection before it is probed", "s", low=0, above=True
    )
    keepalive_idle: int = setting(60, int, "TCP keepalive: idle time before the first probe", "s", low=1, high=32767)
    keepalive_interval: int = setting(10, int, "TCP keepalive: time between probes", "s", low=1, high=32767)
    keepalive_count: int = setting(
        3, int, "TCP keepalive: unanswered probes until it is lost", "probes", low=1, high=127
    )
    health_check_interval: float = setting(
        30.0,
        float,
        "a connection idle for longer is PINGed before use; pool statistics are logged at this pace; 0 switches both "
        "off",
        "s",
        low=0,
    )
    max_idle: float = setting(
        300.0, float, "a pooled connection not needed for this long is closed; 0 keeps it", "s", low=0
    )
    max_lifetime: float = setting(
        3600.0, float, "a pooled connection is renewed between uses after this age (jittered); 0 never", "s", low=0
    )
    leak_warn: float = setting(
        60.0, float, "a pooled connection held for longer is logged with its holder; 0 never", "s", low=0
    )
    jobs_share: int = setting(
        1,
        int,
        "1 (yes): jobs use Redis through their worker, over one connection for all; 0 (no): each horse has connections "
        "of its "
        "own, which it keeps, for jobs that send tens of thousands of commands",
        low=0,
        high=1,
    )
    jobs_login: str | None = setting(
        None,
        str,
        "user:password with which jobs' connections log in, instead of the worker's (docs/security.md)",
        secret=True,
    )
    reconnect_base: float = setting(0.1, float, "first delay before connecting again", "s", low=0, above=True)
    reconnect_cap: float = setting(3.0, float, "longest delay before connecting again", "s", low=0, above=True)
    reconnect_attempts: int = setting(
        0, int, "give up after so many attempts to connect again; 0 never", "attempts", low=0
    )
    concurrency: int = setting(
        1,
        int,
        "horses of a worker: how many jobs it runs at once; 1 keeps stock RQ's order",
        "horses",
        low=1,
        high=10_000,
        env=("QUEUE_CONCURRENCY",),
    )
    claim_ahead: int = setting(
        1,
        int,
        "1 (yes): while jobs are short, a horse is given up to 16 of them at once, together about 5 ms of work, unless "
        "CONCURRENCY is 1; 0 (no): one at a time",
        low=0,
        high=1,
    )
    max_jobs_per_horse: int = setting(1000, int, "replace a horse after so many jobs", "jobs", low=1)
    max_horse_memory: int | None = setting(None, int, "replace a horse whose memory is above this", "MB", low=1)
    heartbeat_interval: float = setting(15.0, float, "time between renewals of the leases", "s", low=0, above=True)
    heartbeat_ttl: float = setting(
        60.0, float, "how long a silent worker keeps its leases (server time)", "s", low=0, above=True
    )
    abandon_after: float = setting(
        900.0, float, "when RQ's own tools give up on a running job that no worker renews", "s", low=0, above=True
    )
    stalled_interval: float = setting(30.0, float, "how often expired leases are looked for", "s", low=0, above=True)
    max_stalls: int = setting(3, int, "how often a job may stall before it fails", "stalls", low=0)
    kill_grace: float = setting(
        10.0, float, "time past the timeout of a job or callback before its horse is killed", "s", low=0
    )
    shutdown_timeout: float | None = setting(
        None, float, "after this, a warm shutdown stops running jobs and puts them back; none waits, as RQ", "s", low=0
    )
    guard_warn: float = setting(
        0.8, float, "share of the server's connections in use at which the guard warns", low=0, above=True, high=1
    )
    guard_stop: float = setting(
        0.95,
        float,
        "share of the server's connections in use at which nothing new is opened",
        low=0,
        above=True,
        high=1,
    )
    guard_interval: float = setting(15.0, float, "how often the guard asks the server", "s", low=0, above=True)
    guard_wait: float = setting(
        60.0, float, "how long a starting worker waits for the server, and to be admitted", "s", low=0
    )
    guard_maxclients: int | None = setting(
        None,
        int,
        "clients that the server allows, where it does not say so itself or another limit counts",
        "clients",
        low=1,
    )
    budget: int | None = setting(
        None, int, "connections that all processes of the application may reserve together", "connections", low=1
    )
    budget_name: str | None = setting(
        None, str, "name of the application, for its budget and in CLIENT LIST; none takes the program's name"
    )
    sweep_ghosts: int = setting(
        1,
        int,
        "1: a worker's maintenance drops entries of failed jobs whose job is gone; 0: it does not",
        low=0,
        high=1,
    )
    sweep_requeue: tuple[str, ...] = setting(
        (), tuple, "exceptions, separated by commas: a worker's maintenance requeues jobs that failed with one"
    )
    sweep_requeue_times: int = setting(3, int, "how often SWEEP_REQUEUE requeues a job in all", "times", low=1)
    sweep_requeue_delay: float = setting(
        60.0, float, "SWEEP_REQUEUE's first delay, scattered, doubled each time up to a day", "s", low=1, high=86_400
    )
    sweep_requeue_rate: float = setting(
        100.0, float, "jobs per second that SWEEP_REQUEUE lets come due", "jobs/s", low=0, above=True
    )
    sweep_bury_after: float | None = setting(
        None, float, "a worker's maintenance moves jobs that failed so long ago to the dead letters", "s", low=0
    )
    sweep_purge_after: float | None = setting(
        None, float, "a worker's maintenance deletes jobs that failed so long ago", "s", low=0, above=True
    )
    sweep_keep: int | None = setting(
        None, int, "a worker's maintenance deletes failed jobs beyond the newest so many of a queue", "jobs", low=1
    )
    sweep_dead_age: float = setting(2_592_000.0, float, "how long SWEEP_BURY_AFTER keeps a dead letter", "s", low=1)
    sweep_dead_count: int = setting(10_000, int, "dead letters that SWEEP_BURY_AFTER keeps per queue", "jobs", low=0)
    preload: tuple[str, ...] = setting((), tuple, "modules imported before forking, separated by commas")
    app: str | None = setting(
        None, str, "Flask app (module:app_or_factory), imported before forking, whose context wraps each job"
    )
    signing_keys: str | None = setting(
        None,
        str,
        "keys that sign jobs, as name:secret, separated by commas: the first signs, all verify (docs/security.md)",
        secret=True,
    )
    signing_keys_file: str | None = setting(None, str, "a file with these keys instead, such as a container's secret")
    signing: str | None = setting(
        None,
        str,
        "with keys: require (so unless set) refuses jobs that are not signed, accept-unsigned runs and counts them",
    )
    signing_unbound: int = setting(
        0,
        int,
        "1 (yes): jobs that SignedSerializer signed in a plain rq.Queue run, too, if they have no callbacks; 0 (no)",
        low=0,
        high=1,
    )
    allowed: tuple[str, ...] = setting(
        (), tuple, "what jobs may call, separated by commas: dotted names, in which * stands for one name; none: all"
    )

    describe: str | Callable[[Any], str] | None = setting(  # noqa: RUF009 - the field of a setting, as all others
        None,
        object,
        "what is shown of a job's call: a function's dotted name; rq_pooled.redaction.redact leaves secrets out",
    )

    def __post_init__(self) -> None:
        fields = dataclasses.fields(self)
        values = {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != f.default}
        for name, value in checked(fields, values, {}).items():
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
            arguments: the values by lower-case name; ``None`` means not given.
            module: RQ's settings module (``-c``) or Flask's config as a mapping; keys ``RQ_POOLED_NAME`` or ``NAME``.
            environ: the environment, ``os.environ`` and what was withheld from it unless given; a variable that is set
                but empty counts as not set.
            prefix: the prefix of the variables and keys.

        Raises:
            ConfigurationError: an unknown argument, or a value that is not allowed.
        """
        arguments = {name: value for name, value in (arguments or {}).items() if value is not None}
        module = module or {}
        environ = ({**withheld, **os.environ} if withheld else os.environ) if environ is None else environ
        known = [field.name for field in dataclasses.fields(cls)]
        for name in arguments:
            if name not in known:
                near = get_close_matches(name, known, 1)
                raise ConfigurationError(
                    f"there is no setting {name!r}" + (f": did you mean {near[0]!r}?" if near else "")
                )
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for info in cls.rows(prefix):
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
        return cls(**checked(dataclasses.fields(cls), values, sources))

    @classmethod
    def rows(cls, prefix: str = PREFIX) -> list[SettingInfo]:
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
                meta.secret,
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
