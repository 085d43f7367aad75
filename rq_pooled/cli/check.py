"""``rq-pooled check``: one line and an exit code, as Nagios and container probes want them.

It is long, because each thing that can be asked has an option and a sentence of its own.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
from redis import Redis
from redis.exceptions import AskError, AuthenticationError, AuthorizationError, RedisError

from ..capacity.level import Level
from ..config.secrets import message_of
from ..config.settings import Settings
from ..connection.away import LOST, is_away
from ..connection.connect_errors import FULL
from ..deadline import within
from ..durations import parse_duration, show_duration
from ..errors import USAGE, ConfigurationError, RQPooledError, ServerUnreachable
from ..monitoring.guard import ConnectionGuard, holders
from ..monitoring.neighbours import ask_neighbours
from ..monitoring.processes import processes
from ..monitoring.queues import queues
from ..monitoring.words import count, some
from ..queue.pause import paused
from . import secure as secured
from .options import open_server, server_options
from .printing import say, say_json

OK, WARNING, CRITICAL, UNKNOWN = range(4)
NAMES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
#: Worst first: a known fault counts more than an unknown state.
_WORST = (CRITICAL, WARNING, UNKNOWN, OK)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    code: int
    text: str
    #: For graphs, as Nagios plugins print it.
    performance: str = ""


class CheckCommand(click.Command):
    """A command whose wrong options end with 3, UNKNOWN, since click's 2 would mean CRITICAL."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, or print one line and end with 3."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            say(f"UNKNOWN - {error.format_message()} (see {ctx.command_path} --help)")
            ctx.exit(UNKNOWN)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; where its line cannot be written (a full disk) end with 3."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            say(f"UNKNOWN - the line cannot be written: {error}", err=True)
            ctx.exit(UNKNOWN)


@click.command(cls=CheckCommand, short_help="Say in one line whether all is well (Nagios, probes).")
@click.option("--queue", "names", multiple=True, metavar="NAME", help="Look at this queue only. May be repeated.")
@click.option(
    "--queue-age", metavar="[WARN:]CRIT", help="Longest time that the head of a queue may wait, such as 1m:10m."
)
@click.option(
    "--failed-rate", metavar="[WARN:]CRIT", help="Largest share of failures in the last 5 minutes, such as 0.1:0.5."
)
@click.option(
    "--rate-limited", metavar="[WARN:]CRIT", help="Most jobs that may wait at rate limits (RQ 3), such as 100:1000."
)
@click.option(
    "--ready", metavar="[WARN:]CRIT", help="Most dependents that may be ready and not queued (RQ 3), such as 1:100."
)
@click.option("--failed", metavar="[WARN:]CRIT", help="Most jobs that may stand as failed, such as 100:1000.")
@click.option("--dead", metavar="[WARN:]CRIT", help="Most jobs that may stand as dead letters, such as 1:100.")
@click.option(
    "--connection-share", metavar="[WARN:]CRIT", help="Share of the server's connections. [GUARD_WARN:GUARD_STOP]"
)
@click.option("--worker", metavar="WHICH", help="A worker must be alive: any, here (on this host), or its name.")
@click.option(
    "--away",
    type=click.Choice(["critical", "ok"]),
    default="critical",
    show_default=True,
    help="What it means that the server cannot be asked: ok for a liveness probe, which must not restart workers then.",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    help="End after this time, whatever the server does. [SOCKET_TIMEOUT]",
)
@click.option(
    "--secure",
    is_flag=True,
    help="Jobs have to be signed, workers to run no others, and this user's rights to end at its keys.",
)
@server_options
@click.pass_context
def check(
    context: click.Context,
    url: str | None,
    as_json: bool,
    names: tuple[str, ...],
    queue_age: str | None,
    failed_rate: str | None,
    rate_limited: str | None,
    ready: str | None,
    failed: str | None,
    dead: str | None,
    connection_share: str | None,
    worker: str | None,
    away: str,
    timeout: str | None,
    secure: bool,
) -> None:
    """Say in one line whether all is well: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN, as Nagios plugins do.

    Without options: whether the server answers, and how full it is. It ends within --timeout in all.
    As a container's liveness probe:
    rq-pooled check --worker here --away ok
    """
    try:
        settings = Settings.load({"url": url})
        ages = _limits(queue_age, lambda text: parse_duration(text, "--queue-age"))
        rates = _limits(failed_rate, lambda text: _share(text, "--failed-rate"))
        counts = {
            "rate_limited": _limits(rate_limited, lambda text: _number(text, "--rate-limited")),
            "ready": _limits(ready, lambda text: _number(text, "--ready")),
            "failed": _limits(failed, lambda text: _number(text, "--failed")),
            "dead": _limits(dead, lambda text: _number(text, "--dead")),
        }
        shares = _limits(connection_share, lambda text: _share(text, "--connection-share"))
        by_queue = ages is not None or any(counts.values())
        if names and not by_queue:
            raise ConfigurationError(
                "--queue says which queue, and not what is wrong there: "
                "give --queue-age, --failed, --dead, --rate-limited or --ready, too"
            )
        seconds = settings.socket_timeout if timeout is None else parse_duration(timeout, "--timeout")
        setting = "SOCKET_TIMEOUT" if timeout is None else "--timeout"
        client, began = open_server(url), time.monotonic()
        with within(seconds, setting):
            level = ConnectionGuard(settings, client).level()
            # INFO is refused; PING tells whether all else is.
            if level.connected is None:
                client.ping()
            findings = [_connections(level, settings, shares)]
            if worker is not None:
                findings.append(_alive(client, worker))
            found = queues(client) if by_queue else []
            if ages is not None:
                findings += _ages(found, ages, names)
            findings += [_counted(found, state, most, names) for state, most in counts.items() if most is not None]
            if rates is not None:
                findings.append(_failures(client, rates))
            stopped = {name: since for name, since in paused(client).items() if not names or name in names}
            if stopped:
                text = f"{count(len(stopped), 'queue')} paused: {some(list(stopped))}"
                findings.append(Finding("paused", OK, text, f"paused={len(stopped)}"))
            if settings.signing_keys is not None or settings.signing_keys_file is not None:
                findings.append(_signatures(client, secure))
            if secure:
                for name, (well, text) in (("rights", secured.rights(client)), ("signing", secured.signing(settings))):
                    findings.append(Finding(name, OK if well else WARNING, text))
                if text := secured.workers(client):
                    findings.append(Finding("workers", WARNING, text))
    except ConfigurationError as error:
        findings = [Finding("settings", UNKNOWN, message_of(error))]
    except (RedisError, OSError, RQPooledError) as error:
        if _lost(error):
            full = FULL in str(error)
            held = _held(client, seconds - (time.monotonic() - began)) if full else ""
            text = f"server {'full' if full else 'away'}: {message_of(error)}{held}"
            findings = [Finding("server", OK if away == "ok" else CRITICAL, text)]
        else:
            # The server is there: this is no outage, and does not pass like one.
            findings = [Finding("server", UNKNOWN, f"the server refuses: {message_of(error)}")]
    except Exception as error:  # noqa: BLE001 - exit code 1 would say WARNING, whatever went wrong
        findings = [Finding("check", UNKNOWN, f"this check failed: {type(error).__name__}: {message_of(error)}")]
    code = next(code for code in _WORST if any(finding.code == code for finding in findings))
    if as_json:
        checks = [{"name": one.name, "status": NAMES[one.code], "code": one.code, "text": one.text} for one in findings]
        say_json({"status": NAMES[code], "code": code, "checks": checks})
    else:
        shown = [finding.text for wanted in _WORST for finding in findings if finding.code == wanted]
        graphs = " ".join(finding.performance for finding in findings if finding.performance)
        line = " ".join(f"{NAMES[code]} - {'; '.join(shown)}".split()).replace("|", "/")
        say(line + (f" | {graphs}" if graphs else ""))
    context.exit(code)


def _held(client: Redis, left: float) -> str:
    """Return who holds the connections of a full server, where a worker of this host can be asked."""
    with within(max(0.2, left), "--timeout"):
        found = ask_neighbours(client)
    if found is None:
        return "; no worker of this host could be asked who holds them"
    return "; held by: " + "; ".join(" ".join(line.split()) for line in holders(found["processes"], found["others"], 5))


def _lost(error: Exception) -> bool:
    """Tell whether the server could not be reached or cannot serve for now; a refused login is an answer."""
    if any(isinstance(one, (AuthenticationError, AuthorizationError)) for one in (error, error.__cause__)):
        return False
    # This is a wrong URL, or protected mode; the URL of one node of a cluster, too.
    if isinstance(error, AskError) or (isinstance(error, ServerUnreachable) and error.exit_code == USAGE):
        return False
    return isinstance(error, (*LOST, OSError)) or is_away(error)


def _limits(text: str | None, parse: Callable[[str], float]) -> tuple[float, float] | None:
    """Return (warning, critical) of ``WARN:CRIT``; of one value both."""
    if text is None:
        return None
    warning, _, critical = text.partition(":")
    limits = parse(warning), parse(critical or warning)
    if limits[0] > limits[1]:
        raise ConfigurationError(f"{text} warns later than it is critical: write it as WARN:CRIT")
    return limits


def _share(text: str, option: str) -> float:
    try:
        share = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigurationError(f"{option} is {text or 'empty'}: write it as a share such as 0.8, or as 80%")
    return share


def _number(text: str, option: str) -> float:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:10]) <= 10**9):
        raise ConfigurationError(f"{option} is {text or 'empty'}: write it as a number of jobs from 1 to 1000000000")
    return int(text)


def _judged(value: float, limits: tuple[float, float]) -> int:
    return CRITICAL if value >= limits[1] else WARNING if value >= limits[0] else OK


def _connections(level: Level, settings: Settings, asked: tuple[float, float] | None) -> Finding:
    limits = asked or (settings.guard_warn, settings.guard_stop)
    if level.share is None or level.maxclients is None:
        # A check that asks for the share must not be told that it is well.
        return Finding(
            "connections", UNKNOWN if asked else OK, "the server answers, and does not tell how many connections it has"
        )
    marks = ";".join(f"{limit * level.maxclients:g}" for limit in limits)
    graph = f"connections={level.connected};{marks};0;{level.maxclients}"
    text = f"{level.connected} of {level.maxclients} connections ({level.share:.1%})"
    return Finding("connections", _judged(level.share, limits), text, graph)


def _alive(client: Redis, which: str) -> Finding:
    host = socket.gethostname()
    workers = [one for one in processes(client) if one["worker"]]
    if which == "here":
        workers = [one for one in workers if one["host"] == host]
    elif which != "any":
        workers = [one for one in workers if one["worker"]["name"] == which]
    if not workers:
        said = {"any": "no worker is alive", "here": f"no worker is alive on {host}"}
        return Finding("worker", CRITICAL, said.get(which, f"worker {which} is not alive"), "workers=0")
    age = min(one["age"] for one in workers)
    text = f"{len(workers)} worker{'s' * (len(workers) > 1)} alive, seen {show_duration(round(age))} ago"
    return Finding("worker", OK, text, f"workers={len(workers)}")


def _ages(queues: list[dict[str, Any]], limits: tuple[float, float], names: Sequence[str]) -> list[Finding]:
    found = {queue["name"]: queue for queue in queues}
    findings = []
    for name in names or sorted(found):
        # No job was ever enqueued there.
        if name not in found:
            findings.append(Finding("queue", OK, f"queue {name} is unknown, so empty"))
            continue
        age, length = found[name]["oldest_age"] or 0.0, found[name]["length"]
        code = _judged(age, limits) if length else OK
        waits = f": {length} job{'s' * (length != 1)}, the first waits for {show_duration(round(age, 1))}"
        if code != OK or names:
            text = f"queue {name}{waits if length else ' is empty'}"
            findings.append(Finding("queue", code, text, f"'age {name}'={age:.1f}s;{limits[0]:g};{limits[1]:g}"))
    return findings or [Finding("queue", OK, f"{len(found)} queue{'s' * (len(found) != 1)} in time")]


#: What is said of jobs that stand beside their queues.
_BESIDE = {
    "rate_limited": "at rate limits",
    "ready": "ready and not queued",
    "failed": "failed",
    "dead": "buried as dead letters",
}


def _counted(queues: list[dict[str, Any]], state: str, limits: tuple[float, float], names: Sequence[str]) -> Finding:
    jobs = sum(queue[state] for queue in queues if not names or queue["name"] in names)
    data = f"{state}={jobs};{limits[0]:g};{limits[1]:g}"
    return Finding(state, _judged(jobs, limits), f"{count(jobs, 'job')} {_BESIDE[state]}", data)


def _signatures(client: Redis, secure: bool) -> Finding:
    """Tell what workers with keys did since their starts. Without ``secure`` the alert rules judge it."""
    counters = [one["worker"]["counters"] for one in processes(client) if one["worker"]]
    unsigned, refused = (sum(one[name] for one in counters) for name in ("unsigned", "refused"))
    kept = f"{refused} {'was' if refused == 1 else 'were'} not loaded (by the workers that run now and have keys)"
    text = f"{unsigned} job{'s' * (unsigned != 1)} ran without a signature, {kept}"
    return Finding("signatures", WARNING if secure and unsigned else OK, text, f"unsigned={unsigned} refused={refused}")


def _failures(client: Redis, limits: tuple[float, float]) -> Finding:
    recent = [one["worker"]["recent"] for one in processes(client) if one["worker"]]
    failed = sum(one["failed"] for one in recent)
    done = failed + sum(one["finished"] for one in recent)
    if not done:
        return Finding("failures", OK, "no job ended lately", "failed=0%")
    share = failed / done
    text = f"{failed} of {done} job{'s' * (done != 1)} failed lately ({share:.1%})"
    return Finding(
        "failures",
        _judged(share, limits) if failed else OK,
        text,
        f"failed={100 * share:.1f}%;{100 * limits[0]:g};{100 * limits[1]:g}",
    )
