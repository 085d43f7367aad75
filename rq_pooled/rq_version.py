"""Which versions of RQ this package works with.

Its worker takes the place of much that RQ does inside, and RQ changes that freely. `pip` keeps RQ below the next major
version when it installs the two together; `pip install -U rq` later only prints that it does not. A worker on an
unknown major version could fail every job that it claims. What differs between the known ones stands in rq_api.py.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable

import rq.version
from rq.job import Job
from rq.queue import Queue
from rq.worker import Worker

from . import rq_api
from .errors import ConfigurationError, RQUnsupported

#: The minor versions whose handlers the parity tests have seen; later ones of the same major version only get a
#: warning.
TESTED = ("2.11", "2.12", "3.0")


def check_rq() -> None:
    """Refuse an RQ with which jobs would be lost.

    Raises:
        RQUnsupported: another major version than the tested ones is installed.
        ConfigurationError: the prefix of keys cannot be used.
    """
    check_prefix()
    version = rq.version.VERSION
    if _numbers(version)[0] not in [_numbers(tested)[0] for tested in TESTED]:
        raise RQUnsupported(
            f"rq {version} is installed, and rq_pooled works with rq {', '.join(TESTED)}: pip install 'rq>=2.11,<4'"
        )


def check_prefix() -> None:
    """Refuse a prefix of keys that RQ does not use, or under which keys of two kinds would meet.

    Raises:
        ConfigurationError: it says what RQ_KEY_PREFIX is, and what to write.
    """
    prefix = rq_api.key_prefix()
    asked = os.environ.get("RQ_KEY_PREFIX", prefix)
    tag = re.search(r"\{([^}]*)(\}?)", prefix)
    if asked != prefix and not rq_api.RQ3:
        trouble = f"rq {rq.version.VERSION} always uses {prefix!r}: unset it, or install rq 3: pip install -U 'rq<4'"
    elif asked != prefix:
        trouble = f"this process imported rq when it was {prefix!r}: set it before Python starts"
    elif tag and not tag[2]:
        trouble = "its brace is open: write '{app}', which puts all keys into one slot of a cluster, or no brace"
    elif tag and not tag[1]:
        trouble = "its hash tag is empty: write '{app}', which puts all keys into one slot of a cluster, or no braces"
    elif re.search("_pooled(?::|$)", prefix):
        trouble = "the keys of rq_pooled itself begin so, for the prefix before '_pooled': choose another name"
    else:
        return
    raise ConfigurationError(f"RQ_KEY_PREFIX is {asked!r}, and {trouble}")


#: RQ's class variables that name keys, and the values that the scripts know.
_KEYS = {
    name: (owner, getattr(owner, name))
    for owner, names in (
        (Job, ("redis_job_namespace_prefix",)),
        (Queue, ("redis_queue_namespace_prefix", "redis_queues_keys")),
        (Worker, ("redis_worker_namespace_prefix", "redis_workers_keys")),
    )
    for name in names
}


def check_keys(classes: Iterable[type]) -> None:
    """Refuse job, queue and worker classes that keep their data under other keys than RQ's own.

    The scripts read and write RQ's own keys: jobs under other keys would look deleted, and be dropped.

    Raises:
        ConfigurationError: a class has another key; it names the class, the variable and both values.
    """
    for cls in classes:
        for name, (owner, usual) in _KEYS.items():
            value = getattr(cls, name, usual) if issubclass(cls, owner) else usual
            if value != usual:
                raise ConfigurationError(
                    f"{cls.__module__}.{cls.__qualname__} sets {name} to {value!r}, and rq_pooled works with RQ's own "
                    "keys "
                    f"({usual!r}): remove it, and separate applications by the database in the URL or by names of "
                    "queues"
                )


def check_handlers(worker_class: type) -> None:
    """Refuse a worker class whose handlers were written for RQ 2: with RQ 3 each call of them would fail its job.

    Raises:
        ConfigurationError: a method does not take the execution; it names the class and the method.
    """
    for name in rq_api.HANDLERS_OF_EXECUTIONS:
        method = getattr(worker_class, name)
        parameters = inspect.signature(method).parameters
        if "execution" not in parameters and all(each.kind is not each.VAR_KEYWORD for each in parameters.values()):
            raise ConfigurationError(
                f"{worker_class.__module__}.{worker_class.__qualname__}.{name}() takes no execution, which rq "
                f"{rq.version.VERSION} passes to it: add the parameter 'execution' and pass it on"
            )


def is_tested() -> bool:
    """Tell whether the tests have seen this version of RQ."""
    return _numbers(rq.version.VERSION)[:2] in [_numbers(tested) for tested in TESTED]


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
