"""The command ``rq-pooled``: its subcommands, and how each error ends."""

from __future__ import annotations

import io
import json
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click
import redis
import rq
from redis.exceptions import AskError, AuthenticationError, AuthorizationError, RedisError

from ..config.secrets import message_of
from ..connection.away import LOST, is_forbidden
from ..errors import TRY_AGAIN, USAGE, RQPooledError
from ..rq_version import check_rq
from . import schedule_sweep
from .acl import acl
from .audit import audit
from .check import check
from .connections import connections
from .failed import failed
from .limit import limit
from .pause import pause, resume
from .printing import say
from .requeue import requeue
from .rescue import rescue
from .schedule import schedule
from .scheduler import scheduler
from .settings import settings
from .stats import stats
from .sweep import sweep
from .top import top
from .web import web
from .worker import worker

#: What people look for under another name.
_ELSEWHERE = {
    "workers": "`rq-pooled stats` shows workers and queues, `rq-pooled worker` starts one",
    "queues": "`rq-pooled stats` shows queues and workers",
    "jobs": "`rq-pooled failed` lists failed jobs, `rq-pooled schedule list` what is to come",
}

EXAMPLES = """\b
Examples:
  rq-pooled demo                                   what ten jobs at once cost, beside stock RQ
  rq-pooled worker                                 one job at a time, as rq worker does
  rq-pooled worker --concurrency 10 high default   ten at once, "high" first
  rq-pooled worker --burst --url rediss://example.org:6380/0
  RQ_POOLED_CONCURRENCY=10 rq worker --worker-class rq_pooled.Worker

\b
Every setting that `rq-pooled settings` shows is also read from the environment,
with RQ_POOLED_ before its name. A password belongs there, not in an argument.
Exit codes: 0, 2 (a setting or argument is wrong), 75 (trying again may help)."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, or one line on stderr and 2 (change something) or 75 (try again)."""
    _make_writable()
    try:
        code = cli.main(arguments, prog_name="rq-pooled", standalone_mode=False) or 0
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        code = _say(f"{error.format_message()} (see {context.command_path if context else 'rq-pooled'} --help)", USAGE)
    except (click.Abort, KeyboardInterrupt):
        code = _say("interrupted", 130)
    except RQPooledError as error:
        # A server that refuses the login is there: trying again does not help.
        refused = isinstance(error.__cause__, (AuthenticationError, AuthorizationError))
        code = _say(error, USAGE if refused else error.exit_code)
    except AuthenticationError as error:
        code = _say(error, USAGE)
    except LOST as error:
        code = _say(error, TRY_AGAIN)
    except AskError as error:
        # URL leads to one node of a cluster; the text says what to write.
        code = _say(f"the server refused a command: {error}", USAGE)
    except RedisError as error:
        # The server is READONLY after a failover, or out of memory; an ACL forbids it as long as it stands.
        forbidden = is_forbidden(error)
        advice = "; commands of rq-pooled log in as the user worker, see `rq-pooled acl`" if forbidden else ""
        code = _say(f"the server refused a command: {error}{advice}", USAGE if forbidden else TRY_AGAIN)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`).
        code = 1
    except OSError as error:
        # A full disk.
        code = _say(error, TRY_AGAIN)
    try:
        sys.stdout.flush()
    except OSError:
        # Python's own flush at exit would only fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def _make_writable() -> None:
    """Have a closed stream (`>&-`) swallow what it is given, and stdout show a `?` for what it cannot encode."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _say(message: object, code: int) -> int:
    """Write one line to stderr and return ``code``."""
    # A full disk may be that of stderr, too.
    with suppress(OSError):
        say("rq-pooled: " + message_of(message), err=True)
    return code


def _version() -> str:
    try:
        return version("rq_pooled")
    except PackageNotFoundError:
        # Run from a source tree.
        return "(not installed)"


class _Group(click.Group):
    """Has a better answer than the most similar name, where that does something else: `worker` starts one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0] if args else ""
        if name in _ELSEWHERE:
            ctx.fail(f"there is no command {name}: {_ELSEWHERE[name]}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Group,
    epilog=EXAMPLES,
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(
    _version(),
    message=f"rq_pooled %(version)s (rq {rq.__version__}, redis-py {redis.__version__}, "
    f"Python {platform.python_version()})",
)
@click.pass_context
def cli(context: click.Context) -> None:
    """RQ on a few shared connections."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    else:
        check_rq()


for command in (
    *(
        acl,
        audit,
        check,
        connections,
        stats,
        top,
        web,
        worker,
        sweep,
        requeue,
        failed,
        rescue,
        settings,
        limit,
        pause,
        resume,
        schedule,
        scheduler,
    ),
    schedule_sweep.command,
):
    cli.add_command(command)


@cli.command(short_help="Run real jobs on a server of its own; show what they cost.")
@click.option("--jobs", type=click.IntRange(1, 100_000), default=200, show_default=True, help="How many jobs.")
@click.option("--concurrency", type=click.IntRange(1, 100), default=10, show_default=True, help="How many at once.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def demo(jobs: int, concurrency: int, as_json: bool) -> None:
    """Run real jobs on a server of its own and show what they cost.

    Starts a bundled Valkey (or redis-server from PATH) on a free port, enqueues jobs that hash, compress and count
    the words of the standard library's sources, a few of them failing, and runs a worker on them. Then `rq worker-pool`
    runs the same jobs.
    """
    from . import demo as play

    with click.progressbar(length=2 * jobs, label="rq_pooled, then stock RQ", file=sys.stderr) as bar:
        report = play.run(jobs, concurrency, bar.update)
    click.echo(json.dumps(report.as_dict(), indent=2) if as_json else "\n" + report.as_table())
