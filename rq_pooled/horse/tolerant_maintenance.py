"""RQ's maintenance where others wrote what it cannot read: that is named and dropped, and all else is maintained.

RQ reads at once all that is to be cleaned. So one id that is no text would stop its maintenance for every job of every
queue, each time anew. Here each queue has its own turn, and one that fails is looked through and tried again.
Groups, of which there may be many, are cleaned by a script, in pages: RQ takes two round trips for each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from redis.exceptions import RedisError, ResponseError
from rq.exceptions import NoSuchJobError
from rq.queue import Queue
from rq.registry import StartedJobRegistry

from ..connection.away import is_away, is_forbidden
from ..foreign import MAX_VALUE, error_words, printable
from ..store.repair import clean_groups as clean_page
from ..wire import Command, raw
from .large import Refused


def maintain_each(worker: Any, maintain: Callable[[], Any]) -> None:
    """Call ``maintain``, RQ's ``clean_registries``, for each of the worker's queues.

    Raises:
        redis.exceptions.RedisError, Refused: the server was lost, or refuses a command.
    """
    queues = worker.queues
    try:
        for queue in queues:
            worker.queues = [queue]
            try:
                maintain()
            except Exception as error:  # noqa: BLE001 - whatever one entry is must not stop the others
                check_unreadable(error)
                say_unreadable(worker, f"cleaning up queue {printable(queue.name, MAX_VALUE)} once more", error)
                _again(worker, queue, maintain)
    finally:
        worker.queues = queues


def check_unreadable(error: Exception) -> None:
    """Raise the error again if it is not about what others wrote, but about the server, the parent or rights."""
    is_of_data = isinstance(error, ResponseError) and not is_away(error) and not is_forbidden(error)
    if isinstance(error, (RedisError, Refused, OSError, EOFError)) and not is_of_data:
        raise error


def _again(worker: Any, queue: Queue, maintain: Callable[[], Any]) -> None:
    """Look through what is to be cleaned, drop what RQ cannot read, and call ``maintain`` again."""
    try:
        _screen_started(worker, queue)
        # RQ took the lock, and failed before it gave it back.
        queue.release_maintenance_lock()
        maintain()
    except Exception as error:  # noqa: BLE001 - as above
        check_unreadable(error)
        say_unreadable(worker, f"the registries of queue {printable(queue.name, MAX_VALUE)} cannot be cleaned", error)


def _screen_started(worker: Any, queue: Queue) -> None:
    """Drop the entries that are over, and that RQ cannot read or whose job it cannot; RQ would drop them, too."""
    registry = StartedJobRegistry(queue.name, connection=queue.connection, job_class=queue.job_class)
    key, connection = raw(registry.key), queue.connection  # type: Any, Any
    for entry in connection.zrangebyscore(key, 0, time.time()):
        try:
            job_id = registry.parse_job_id(entry)
            registry.job_class.fetch(job_id, connection=connection, serializer=queue.serializer)
        except NoSuchJobError:
            continue
        except Exception as error:  # noqa: BLE001 - a damaged hash may raise anything
            check_unreadable(error)
            say_unreadable(
                worker, f"dropping {printable(entry, MAX_VALUE)}, which is abandoned and cannot be read", error
            )
            connection.zrem(key, entry)


def clean_groups(run: Callable[[Command], Any]) -> None:
    """Clean RQ's groups page by page; ``run`` calls a script. It stands for Group.clean_registries."""
    for large in _pages(run):
        for group in large:
            for _ in _pages(run, group):
                pass


def _pages(run: Callable[[Command], Any], *group: bytes) -> Iterator[list[bytes]]:
    """Clean pages of all groups, or of one, and yield the names of groups that take pages of their own."""
    cursor, is_last = b"0", False
    while not is_last:
        cursor, *large = run(clean_page(cursor, *group))
        yield large
        is_last = cursor == b"0"


def say_unreadable(worker: Any, what: str, error: Exception) -> None:
    """Log what maintenance does about an error, and the error in one line."""
    reason = error_words(error)
    worker.log.warning("Worker %s: %s (%s)", worker.name, what, reason)
