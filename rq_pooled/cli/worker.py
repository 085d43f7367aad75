"""``rq-pooled worker``: takes what ``rq worker`` takes, and makes a worker of it."""

from __future__ import annotations

import logging.config
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import click
import redis
from rq.cli import helpers
from rq.serializers import resolve_serializer
from rq.utils import import_attribute

from ..config.secrets import scrub, scrub_url
from ..config.sentinel_url import is_sentinel_url
from ..config.settings import Settings
from ..connection.options import connection_options
from ..errors import ConfigurationError
from ..pool.pool import Pool
from .options import WorkerCommand, rq_options, setting_options

STRATEGIES = ("default", "random", "round_robin")


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
    found = classes.worker_class(
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
    found.work(
        burst=options["burst"],
        logging_level="DEBUG" if options["verbose"] else "WARNING" if options["quiet"] else options["logging_level"],
        date_format=options["date_format"],
        log_format=options["log_format"],
        max_jobs=options["max_jobs"],
        max_idle_time=options["max_idle_time"],
        with_scheduler=options["with_scheduler"],
        dequeue_strategy=options["dequeue_strategy"],
    )


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
            _make_once(client)
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


def _make_once(client: redis.Redis) -> None:
    """Make a connection to the master and to each sentinel, without connecting: wrong words fail now, not later."""
    manager: Any = client.connection_pool.sentinel_manager  # type: ignore[attr-defined]
    for pool in (client.connection_pool, *(sentinel.connection_pool for sentinel in manager.sentinels)):
        pool.connection_class(**pool.connection_kwargs)


def _write_pid(path: str) -> None:
    try:
        with open(os.path.expanduser(path), "w") as file:
            file.write(str(os.getpid()))
    except OSError as error:
        raise ConfigurationError(f"--pid {path} cannot be written: {error.strerror}") from error


worker = WorkerCommand(
    "worker",
    callback=run_worker,
    params=[*setting_options(), *rq_options()],
    help=run_worker.__doc__,
    short_help="Run jobs.",
)
