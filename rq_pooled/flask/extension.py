"""``RQPooled``: queues for Flask applications, on one bounded pool per process; and the blueprint with its page.

Nothing here opens a connection before it is used, and nothing runs in the background. So applications may be made
before gunicorn forks, in threads, under gevent, and in a worker's APP. Never imports the worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import rq.decorators
from flask import Blueprint, Flask, current_app, has_app_context
from redis import Redis

from ..config import describing
from ..config.settings import PREFIX, Settings
from ..errors import ConfigurationError
from ..queue.queue import Queue
from ..rq_version import check_rq
from ..signing.policy import sign_by
from .blueprint import make_blueprint
from .rights import Authorize, Who
from .views import Client

__all__ = ["RQPooled"]


class RQPooled:
    """Queues of a Flask application; one object serves several applications, each with settings of its own.

    Settings come from ``app.config`` (``RQ_POOLED_URL``, ``RQ_POOLED_MAX_CONNECTIONS`` …), which wins over the
    environment. Outside of an application context the object works while it has been given only one application.

    Args:
        app: call ``init_app`` with it.
        queue: name of the queue that ``.queue`` and ``@job`` mean where none is named.
        queue_class: of the queues, an ``rq.Queue``.
        queue_options: further arguments for each queue, such as ``default_timeout=600`` or ``is_async=False``.
    """

    def __init__(
        self, app: Flask | None = None, queue: str = "default", queue_class: type[Any] = Queue, **queue_options: Any
    ) -> None:
        self._default = queue
        self._queue_class = queue_class
        self._queue_options = queue_options
        self._clients: WeakKeyDictionary[Flask, Client] = WeakKeyDictionary()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the application's settings and register there; connects nowhere.

        Raises:
            ConfigurationError: a setting in ``app.config`` or the environment cannot be used, RQ keeps its data under
                another prefix, or the application has another RQPooled already.
            RQUnsupported: another major version of RQ is installed.
        """
        check_rq()
        if app.extensions.get("rq_pooled", self) is not self:
            raise ConfigurationError("this application has an RQPooled already: use app.extensions['rq_pooled']")
        given = {key: value for key, value in app.config.items() if key.startswith(PREFIX)}
        # Other keys may be the application's own, as URL is. RQ_POOLED_APP is for the worker.
        names = {key[len(PREFIX) :].lower(): value for key, value in given.items() if key != f"{PREFIX}APP"}
        settings = Settings.load(names)
        sign_by(settings, set(given))
        if f"{PREFIX}DESCRIBE" in given:
            describing.use(settings)
        self._clients[app] = Client(settings)
        app.extensions["rq_pooled"] = self

    @property
    def settings(self) -> Settings:
        """The settings of the current application."""
        return self._client().settings

    @property
    def connection(self) -> Redis:
        """The current application's client, on the process's pool for its server. Opens nothing by itself."""
        return self._client().redis

    @property
    def queue(self) -> Any:
        """The default queue; see ``get_queue``."""
        return self.get_queue()

    def get_queue(self, name: str | None = None, **options: Any) -> Any:
        """Return a queue of the current application. Does not block: nothing is sent before it is used.

        Args:
            name: the default queue if not given.
            options: further arguments of the queue's class.

        Raises:
            ConfigurationError: there is no application to tell which server is meant.
        """
        return self._queue_class(name or self._default, self.connection, **{**self._queue_options, **options})

    def job(self, queue: str | Callable[..., Any] | None = None, **options: Any) -> Any:
        """Give a function ``delay`` and ``enqueue``, which put it into a queue: ``@rq.job`` or ``@rq.job("mail",
        ttl=60)``.

        The application is the one that is current when the function is enqueued.

        Args:
            queue: name of the queue, the default one if not given.
            options: of RQ's own decorator: ``timeout``, ``result_ttl``, ``retry``, ``on_failure`` …
        """
        if callable(queue):
            return self.job()(queue)

        make: Any = rq.decorators.job
        own: Any = lambda name, connection: self.get_queue(name)
        return make(queue or self._default, None, queue_class=own, **options)

    def blueprint(
        self, authorize: Authorize | None = None, name: str = "rq_pooled", *, who: Who | None = None
    ) -> Blueprint:
        """Return the health endpoints and the page, to be mounted: ``app.register_blueprint(…, url_prefix="/rq")``.

        Args:
            authorize: ``authorize(action, queue)`` returns True for what the request may do; docs/security.md has the
                actions. It is asked about all but ``/health/redis``, and without it all is 403.
            name: of the blueprint, for ``url_for``.
            who: returns who is asking, for the trail; else what the web server has authenticated.

        Raises:
            ConfigurationError: ``authorize`` takes other arguments.
        """
        return make_blueprint(self._client, authorize, name, who)

    def _client(self) -> Client:
        if has_app_context():
            client = self._clients.get(current_app._get_current_object())  # type: ignore[attr-defined]
            if client is None:
                raise ConfigurationError("the current application has no RQPooled: call init_app with it")
            return client
        if len(self._clients) == 1:
            return next(iter(self._clients.values()))
        raise ConfigurationError(
            "there is no application: call init_app first"
            if not self._clients
            else "several applications share this RQPooled: say which one is meant by app.app_context()"
        )
