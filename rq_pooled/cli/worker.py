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

from ..config.own_urls import is_own_url
from ..config.secrets import scrub_url
from ..config.settings import Settings
from ..config.user_code import user_code
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
        except Exception as error:
            cause = error.__cause__ or error
            words = f"{error} ({type(cause).__name__}: {cause})"
            raise ConfigurationError(f"DICT_CONFIG in --config cannot be used: {words}") from error
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
        **{setting.name: getattr(settings, setting.name) for setting in Settings.rows() if setting.name != "url"},
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
    with user_code(f"--serializer {options['serializer']} cannot be used"):
        resolve_serializer(options["serializer"])
    classes = helpers.CliConfig(**names)
    # It is imported here, so that --help and the demo do without the worker.
    from rq_pooled import Worker

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
    with user_code(f"--config {name} cannot be imported"):
        return dict(helpers.read_config_file(name))


def _imported(option: str, name: str) -> Any:
    with user_code(f"{option} {name} cannot be imported"):
        return import_attribute(name)


def _connection(settings: Settings, module: Mapping[str, Any], connection_class: type[redis.Redis]) -> redis.Redis:
    """Return a client of the server; nothing connects yet. Without a URL, SENTINEL in the settings module counts."""
    if settings.url == Settings().url and module.get("SENTINEL") is not None:
        with user_code("SENTINEL in --config cannot be used"):
            client: redis.Redis = helpers.get_redis_from_config({"SENTINEL": module["SENTINEL"]}, connection_class)
            _make_once(client)
        return client
    # Refuses parameters that would fail later.
    connection_options(settings, "command")
    if is_own_url(settings.url):
        # redis-py reads no such URL.
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
