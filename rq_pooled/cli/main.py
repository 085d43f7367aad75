"""The command ``rq-pooled``: a worker with the flags of ``rq worker``, a demo, and the settings in force.

The options of ``worker`` come from cli/options.py; what is here is what the commands do, and how each error ends.
"""

from __future__ import annotations

import io
import json
import logging.config
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click
import redis
import rq
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq.cli import helpers
from rq.serializers import resolve_serializer
from rq.utils import import_attribute

from ..config.secrets import message_of, scrub, scrub_url
from ..config.sentinel_url import is_sentinel_url
from ..config.settings import Settings
from ..config.typos import misspelt
from ..connection.options import connection_options
from ..errors import TRY_AGAIN, USAGE, ConfigurationError, RQPooledError
from ..pool.pool import Pool
from ..rq_version import check_rq
from . import failed, schedule_sweep
from .check import check
from .limit import limit
from .options import WorkerCommand, rq_options, setting_options, settings_as_markdown, shown
from .printing import say
from .rescue import rescue
from .scheduler import scheduler
from .stats import connections, stats
from .top import top

STRATEGIES = ("default", "random", "round_robin")

EXAMPLES = """\b
Examples:
  rq-pooled demo                                   what ten jobs at once cost
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
        refused = isinstance(error.__cause__, (AuthenticationError, AuthorizationError))  # the server is there
        code = _say(error, USAGE if refused else error.exit_code)
    except AuthenticationError as error:
        code = _say(error, USAGE)
    except (RedisConnectionError, RedisTimeoutError) as error:
        code = _say(error, TRY_AGAIN)
    except RedisError as error:  # READONLY after a failover, out of memory, forbidden by an ACL
        code = _say(f"the server refused a command: {error}", TRY_AGAIN)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`).
        code = 1
    except OSError as error:  # a full disk
        code = _say(error, TRY_AGAIN)
    try:
        sys.stdout.flush()
    except OSError:  # and Python's flush at exit would only fail again
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
    with suppress(OSError):  # a disk that is full may be that of stderr, too
        say("rq-pooled: " + message_of(message), err=True)
    return code


def _version() -> str:
    try:
        return version("rq_pooled")
    except PackageNotFoundError:  # run from a source tree
        return "(not installed)"


@click.group(
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


for monitor in (check, connections, stats, top):
    cli.add_command(monitor)


def run_worker(**options: Any) -> None:
    """Run jobs of QUEUES (default: "default"), CONCURRENCY at once.

    Takes the options of `rq worker` and one for each setting. A setting on the command line goes before one in
    the environment (RQ_POOLED_CONCURRENCY), that before one in the settings module (--config).
    """
    given = {option.name: options.pop(option.name) for option in setting_options() if option.name}
    if options["verbose"] and options["quiet"]:
        raise click.UsageError("--verbose and --quiet exclude each other: use one.")
    if options["dequeue_strategy"] not in STRATEGIES:
        raise click.UsageError(f"--dequeue-strategy is one of {', '.join(STRATEGIES)}.")

    classes = _classes(options)
    module = _settings_module(options["config"])
    settings = Settings.load(given, module)
    handlers = [_imported("--exception-handler", name) for name in options["exception_handler"]]
    connection = _connection(settings, module, classes.connection_class)

    names = options["queues"] or _queue_names(module) or ["default"]
    if not isinstance(module.get("NAME") or "", str):
        raise ConfigurationError(f"NAME in --config is {module['NAME']!r}: it must be a text")
    if module.get("DICT_CONFIG"):
        try:
            logging.config.dictConfig(module["DICT_CONFIG"])
        except Exception as error:  # whatever the user has written there
            cause = error.__cause__ or error
            raise ConfigurationError(f"DICT_CONFIG in --config cannot be used: {error} ({_words(cause)})") from error
    helpers.setup_loghandlers_from_args(
        options["verbose"], options["quiet"], options["date_format"], options["log_format"]
    )
    if options["pid"]:
        _write_pid(options["pid"])

    queues = [
        classes.queue_class(name, connection=connection, job_class=classes.job_class, serializer=options["serializer"])
        for name in names
    ]
    worker = classes.worker_class(
        queues,
        name=options["name"] or module.get("NAME"),
        connection=connection,
        worker_ttl=options["worker_ttl"],
        default_result_ttl=options["results_ttl"],
        maintenance_interval=options["maintenance_interval"],
        job_monitoring_interval=options["job_monitoring_interval"],
        job_class=classes.job_class,
        queue_class=classes.queue_class,
        exception_handlers=handlers or None,
        disable_default_exception_handler=options["disable_default_exception_handler"],
        log_job_description=not options["disable_job_desc_logging"],
        serializer=options["serializer"],
        # The URL is in the connection, which may come from elsewhere (SENTINEL in the settings module).
        **{setting.name: getattr(settings, setting.name) for setting in Settings.describe() if setting.name != "url"},
    )
    worker.work(
        burst=options["burst"],
        logging_level="DEBUG" if options["verbose"] else "WARNING" if options["quiet"] else options["logging_level"],
        date_format=options["date_format"],
        log_format=options["log_format"],
        max_jobs=options["max_jobs"],
        max_idle_time=options["max_idle_time"],
        with_scheduler=options["with_scheduler"],
        dequeue_strategy=options["dequeue_strategy"],
    )


cli.add_command(
    WorkerCommand(
        "worker",
        callback=run_worker,
        params=[*setting_options(), *rq_options()],
        help=run_worker.__doc__,
        short_help="Run jobs.",
    )
)


for command in (failed.sweep, failed.requeue, failed.failed):
    cli.add_command(command)


def _classes(options: Mapping[str, Any]) -> Any:
    """Return RQ's own object with the classes that were asked for, each of them importable; extends the import path."""
    sys.path.extend(options["path"])
    names = {name: value for name, value in options.items() if name.endswith("_class")}
    for name, value in names.items():
        _imported("--" + name.replace("_", "-"), value)
    try:
        resolve_serializer(options["serializer"])
    except Exception as error:
        raise ConfigurationError(f"--serializer {options['serializer']} cannot be used: {_words(error)}") from error
    classes = helpers.CliConfig(**names)
    from rq_pooled import Worker  # here, so that --help and the demo do without the worker

    if not issubclass(classes.worker_class, Worker):
        raise ConfigurationError(
            f"--worker-class {names['worker_class']} is no subclass of rq_pooled.Worker: leave it out, or use `rq "
            "worker`"
        )
    return classes


def _queue_names(module: Mapping[str, Any]) -> list[str]:
    names = module.get("QUEUES") or []
    if isinstance(names, str) or not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"QUEUES in --config is {names!r}: write a list of names, such as ['high', 'default']")
    return list(names)


def _settings_module(name: str | None) -> dict[str, Any]:
    if not name:
        return {}
    try:
        return dict(helpers.read_config_file(name))
    except (Exception, SystemExit) as error:  # the user's own module: whatever is wrong there is said in one line
        raise ConfigurationError(f"--config {name} cannot be imported: {_words(error)}") from error


def _imported(option: str, name: str) -> Any:
    try:
        return import_attribute(name)
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"{option} {name} cannot be imported: {_words(error)}") from error


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _connection(settings: Settings, module: Mapping[str, Any], connection_class: type[redis.Redis]) -> redis.Redis:
    """Return a client of the server; nothing connects yet. Where no URL is set, SENTINEL in the settings module
    counts.
    """
    if settings.url == Settings().url and module.get("SENTINEL") is not None:
        try:
            client: redis.Redis = helpers.get_redis_from_config({"SENTINEL": module["SENTINEL"]}, connection_class)
        except Exception as error:  # whatever the user has written there
            raise ConfigurationError(f"SENTINEL in --config cannot be used: {scrub(_words(error))}") from error
        return client
    connection_options(settings, "command")  # refuses parameters that fail later
    if is_sentinel_url(settings.url):  # redis-py reads no such URL
        return connection_class(connection_pool=Pool(settings, "command"))
    try:
        return connection_class.from_url(settings.url)
    except ValueError as error:
        raise ConfigurationError(f"URL is {scrub_url(settings.url)}: {error}") from error


def _write_pid(path: str) -> None:
    try:
        with open(os.path.expanduser(path), "w") as file:
            file.write(str(os.getpid()))
    except OSError as error:
        raise ConfigurationError(f"--pid {path} cannot be written: {error.strerror}") from error


cli.add_command(rescue)


@cli.command(short_help="Run real jobs on a server of its own; show what they cost.")
@click.option("--jobs", type=click.IntRange(1, 100_000), default=300, show_default=True, help="How many jobs.")
@click.option("--concurrency", type=click.IntRange(1, 100), default=10, show_default=True, help="How many at once.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def demo(jobs: int, concurrency: int, as_json: bool) -> None:
    """Run real jobs on a server of its own and show what they cost.

    Starts a bundled Valkey (or redis-server from PATH) on a free port, enqueues jobs that hash, compress and count
    the words of the standard library's sources, a few of them failing, and runs a worker on them.
    """
    from . import demo as play

    with click.progressbar(length=jobs, label=f"{jobs} jobs, {concurrency} at once", file=sys.stderr) as bar:
        report = play.run(jobs, concurrency, bar.update)
    click.echo(json.dumps(report.as_dict(), indent=2) if as_json else "\n" + report.as_table())


@cli.command(short_help="Show the settings that the environment gives.")
@click.option("--markdown", is_flag=True, help="Print the table of docs/settings.md.")
def settings(markdown: bool) -> None:
    """Show the settings that the environment gives, without passwords."""
    if markdown:
        click.echo(settings_as_markdown(), nl=False)
        return
    current = Settings.load()
    for line in misspelt():
        say(f"rq-pooled: {line}", err=True)
    for setting in Settings.describe():
        value = getattr(current, setting.name)
        say(f"{setting.env[0]:<34} {scrub_url(value) if setting.name == 'url' else shown(value)}")


cli.add_command(limit)
cli.add_command(scheduler)
cli.add_command(schedule_sweep.command)
