"""What is shown of a job's call, by this process: DESCRIBE is asked where a job is enqueued, and where it is shown."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from rq.timeouts import BaseTimeoutException

from ..errors import ConfigurationError
from ..foreign import plain
from ..redaction import LEFT_OUT, Call, redact, without_arguments
from .settings import PREFIX, Settings
from .user_code import check_not_async, is_unawaited, user_code

logger = logging.getLogger("rq_pooled")

Describe = Callable[[Call], str]
#: Characters of a description that are kept.
_LONGEST = 1000
_NAME = PREFIX + "DESCRIBE"
#: Whether it is known how this process describes, how, and whether a failure was logged.
_state: dict[str, Any] = {"known": False, "describe": None, "warned": False}


def current() -> Describe | None:
    """Return how this process describes calls, None as RQ does; from the environment unless ``use`` was called.

    Raises:
        ConfigurationError: DESCRIBE cannot be imported.
    """
    if not _state["known"]:
        use(Settings.load() if _NAME in os.environ else None)
    found: Describe | None = _state["describe"]
    return found


def use(settings: Settings | None) -> None:
    """Have this process describe by these settings; None by none.

    Raises:
        ConfigurationError: DESCRIBE cannot be imported, or is asynchronous.
    """
    named: Any = settings.describe if settings is not None else None
    describe = _imported(named) if isinstance(named, str) else named
    check_not_async("DESCRIBE", describe)
    _state.update(known=True, describe=describe, warned=False)


def forget() -> None:
    """Have this process look at its environment again."""
    _state.update(known=False, describe=None, warned=False)


def described(job: Any, function: Any) -> str | None:
    """Return the description of a job that is about to be enqueued, None to leave it RQ's.

    Args:
        job: just created.
        function: what it was created from.
    """
    describe = current()
    if describe is None:
        return None
    args, kwargs = tuple(job.args or ()), dict(job.kwargs or {})
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        # A name, which is not imported here, or a call that will fail.
        pass
    else:
        args, kwargs = (), {}
        for one, value in bound.arguments.items():
            kind = bound.signature.parameters[one].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                args = value
            else:
                kwargs.update(value if kind is inspect.Parameter.VAR_KEYWORD else {one: value})
    call = Call(str(job.func_name), args, kwargs, job.description or "")
    return _said(describe, call, f"{job.func_name}({LEFT_OUT})")


def shown_description(text: str, own_code_only: bool = False) -> str:
    """Return what is shown of the description in a job's hash, which others may have written.

    Args:
        text: the description.
        own_code_only: this process runs no user's code, so that only our own ``redact`` is asked.
    """
    describe = current()
    if describe is None or not text:
        return text
    bare = without_arguments(text)
    if own_code_only and describe is not redact:
        return bare
    return _said(describe, Call(bare.partition("(")[0], None, None, text), bare)


def _said(describe: Describe, call: Call, otherwise: str) -> str:
    said: str | None
    try:
        said = describe(call)
        problem = f"returned {type(said).__name__}, and no text"
        if is_unawaited(said):
            said = None
    except BaseTimeoutException:
        # The job in which this runs is over its time.
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's code; its text may hold what is to be hidden
        said, problem = None, f"raised {type(error).__name__}"
    if isinstance(said, str):
        # Half of a character cannot be written to Redis, and the job is not to be lost for it.
        return str(plain(said[:_LONGEST]))
    if not _state["warned"]:
        _state["warned"] = True
        logger.warning("DESCRIBE %s: only the names of functions are shown", problem)
    return otherwise


def _imported(name: str) -> Describe:
    module, _, attribute = name.rpartition(".")
    with user_code(f"DESCRIBE names {name!r}, which cannot be imported"):
        found = getattr(import_module(module), attribute)
    if not callable(found):
        raise ConfigurationError(f"DESCRIBE names {name!r}, which cannot be called: name a function")
    return found  # type: ignore[no-any-return]
