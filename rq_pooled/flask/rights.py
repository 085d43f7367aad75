"""Who may do what on the page and at its endpoints: what the application's ``authorize`` says, and who is asking."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

from flask import abort, request

from ..config.user_code import check_not_async, is_unawaited
from ..errors import ConfigurationError
from ..foreign import MAX_VALUE, printable
from ..store.views import current_view, viewing

#: What ``authorize`` is asked about.
VIEW, REQUEUE, BURY, PURGE, STOP, PAUSE = RIGHTS = ("view", "requeue", "bury", "purge", "stop", "pause")

#: The views that ask about each queue that they show or change; others are closed to an ``authorize(action, queue)``.
ASKING = {
    *("static", "redis_pool_stats", "queues_status", "queues_failed_jobs", "metrics", "page", "trail_page"),
    *("queue", "queue_pause", "queue_limit", "queue_requeue", "queue_sweep", "schedule", "schedule_cancel"),
    *("workers_page", "workers_stop", "failed", "job", "failed_confirm", "jobs_act", "nowhere"),
}


class _Write:
    """The answer of an ``authorize`` without arguments that allows everything."""

    def __repr__(self) -> str:
        return "rq_pooled.flask.WRITE"


WRITE: Final = _Write()

_log = logging.getLogger("rq_pooled")

#: ``authorize(action, queue)`` returns whether that is allowed; without arguments it is the old form.
Authorize = Callable[..., Any]
#: Returns who is asking, as the trail names it.
Who = Callable[[], Any]


class Rights:
    """What one blueprint asks its application.

    Args:
        authorize: called with one of RIGHTS and a queue, once per request for each. Only ``True`` allows. The queue is
            None for what belongs to no single queue: to open the page at all, connections, processes. The old form
            takes no argument: a true value may look, WRITE or the word ``"write"`` may do everything, with every queue.
        who: returns who is asking; else what the web server has authenticated.

    Raises:
        ConfigurationError: ``authorize`` takes other arguments, or one of them is asynchronous.
    """

    def __init__(self, authorize: Authorize | None, who: Who | None = None) -> None:
        self._authorize = authorize
        check_not_async("who", who)
        self._who = who
        self._by_queue = authorize is not None and _takes_action_and_queue(authorize)

    def enter(self, view: str, changes: bool) -> None:
        """Begin a request: 403 where the page may not be opened."""
        if self._authorize is None:
            abort(403, "RQPooled.blueprint() was given no authorize, so this is closed to all")
        if not self.may(VIEW):
            abort(403, "not allowed")
        if not self._by_queue and changes and not self.may(REQUEUE):
            abort(403, "not allowed: authorize has to return rq_pooled.flask.WRITE for this")
        if self._by_queue and view not in ASKING:
            abort(403, f"not allowed: {view} does not ask about single queues")

    def showing(self) -> AbstractContextManager[None]:
        """Hide what may not be seen while the block lasts."""
        return viewing(self.allows if self._by_queue else None)

    def may(self, action: str, queue: str | None = None) -> bool:
        """Tell whether the request may do this; what may not be seen cannot be acted on. See ``View`` for the time."""
        view = current_view()
        return self.allows(action, queue) if queue is None or not view.is_restricted else view.may(action, queue)

    def allows(self, action: str, queue: str | None) -> bool:
        """Tell the same for what is to be done, however long it takes to ask."""
        if action != VIEW and not self.allows(VIEW, queue):
            return False
        if not self._by_queue:
            said = self._ask()
            return bool(said) if action == VIEW else said is WRITE or (isinstance(said, str) and said == "write")
        return self._ask(action, queue) is True

    def require(self, action: str, queue: str | None = None) -> None:
        """End the request with 403 if it may not do this, whether the queue exists or not."""
        if not self.allows(action, queue):
            of = "" if queue is None else f" in queue {printable(queue, MAX_VALUE)!r}"
            abort(403, f"not allowed: {action}{of}")

    def who(self) -> str:
        """Return who is asking, "" if that is not known."""
        said = self._who() if self._who is not None else request.remote_user
        return "" if said is None or _is_unawaited("who", said) else printable(said, MAX_VALUE)

    def _ask(self, *about: str | None) -> Any:
        """Return what the application says, asked once per request."""
        if self._authorize is None:
            return None
        # Not in flask.g: an application context that was pushed at import lives as long as the process.
        answers: dict[Any, Any] = request.environ.setdefault("rq_pooled.rights", {})
        if (self, about) not in answers:
            said = self._authorize(*about)
            answers[self, about] = None if _is_unawaited("authorize", said) else said
        return answers[self, about]


def _is_unawaited(name: str, said: Any) -> bool:
    """Tell whether an answer has to be awaited, which nothing here does: it is none then, and the log says so."""
    if not is_unawaited(said):
        return False
    _log.error("%s returned a %s, which is never awaited: return the answer itself", name, type(said).__name__)
    return True


def _takes_action_and_queue(authorize: Authorize) -> bool:
    """Tell whether this is called with an action and a queue, or, the old form, with nothing."""
    check_not_async("authorize", authorize)
    try:
        signature = inspect.signature(authorize)
    except (TypeError, ValueError):
        # A function of C does not tell.
        return True
    for arguments in (("view", None), ()):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return bool(arguments)
    raise ConfigurationError(f"authorize takes {signature}: have it take (action, queue)")
