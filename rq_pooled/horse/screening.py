"""A job is looked at before it is loaded: its signature, what it calls, how large it is unpacked.

One that is not to be loaded, or cannot be read, is rebuilt bare, so that its failure is recorded with the reason.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import rq.job
import rq.results
from rq.exceptions import DeserializationError
from rq.job import Job
from rq.queue import Queue
from rq.serializers import DefaultSerializer

from ..errors import NotVerified
from ..foreign import MAX_VALUE, error_words, inflated, printable
from ..signing.attach import attach, guard
from ..signing.envelope import MAX_UNPACKED, is_sealed, unpacked
from ..signing.job import CALLBACKS, Verified, check_callbacks, look_at
from ..signing.policy import Policy
from ..signing.serializer import Sealed
from ..store.counters import REFUSED, UNSIGNED
from ..store.unpickling import loads_inert
from ..wire import text

#: What is not written back of a job that is not loaded: its hash keeps what it had, for those who look, or requeue it.
_KEPT = frozenset(("data", "meta", "result", "exc_info", "webhooks", *CALLBACKS))
#: What is not read of it besides: none of this may be unpickled, unpacked, called, or sent to.
_LEFT_OUT = frozenset(name.encode() for name in (*_KEPT, "retries_left", "repeats_left", "retry_intervals"))


#: What is not even tried: it would be unpickled or unpacked.
_NEVER_READ = frozenset((b"data", b"meta", b"result", b"exc_info"))
#: What the reason of a job whose hash cannot be read begins with.
UNREADABLE = f"{DeserializationError.__module__}.{DeserializationError.__name__}"


class Unscreened:
    """Stands for what was found out about a job of which nothing was to be found out."""

    refusal: str | None = None
    unsigned = False

    def counted(self, worker_key: str) -> list[list[bytes]]:
        """Return the commands that count the job: none."""
        return []


UNSCREENED = Unscreened()


class Screened:
    """Restores a job from its hash, bare if it is not to be loaded.

    Args:
        policy: what is verified and allowed.
        job: to be restored. Its serializer is replaced where it is signed.
        queue: from which it was taken.
        raw: the hash.
        restore: the job's own way, unless given.
    """

    def __init__(
        self,
        policy: Policy,
        job: Job,
        queue: Queue | None,
        raw: Mapping[bytes, bytes],
        restore: Callable[[Any], Any] | None = None,
    ) -> None:
        #: Why it is not to be loaded, if it is not.
        self.refusal: str | None = None
        #: It is not signed, and runs all the same.
        self.unsigned = False
        #: It fails since its hash cannot be read, and not for its signature or what it calls.
        self.unreadable = False
        restore = restore or job.restore
        try:
            if policy.checks:
                self._restore_checked(policy, job, queue, raw, restore)
            else:
                restore(raw)
                _check_lists(job)
        except NotVerified as error:
            self.refusal = f"{NotVerified.__module__}.{NotVerified.__name__}: {error}"
            _restore_bare(job, raw, restore)
        except Exception as error:  # noqa: BLE001 - a job class of the user's may raise anything
            self.unreadable, unread = True, _restore_bare(job, raw, restore)
            which = f"{', '.join(unread)} of " if unread else ""
            self.refusal = f"{UNREADABLE}: {which}its hash cannot be read: {error_words(error)}"

    def _restore_checked(
        self,
        policy: Policy,
        job: Job,
        queue: Queue | None,
        raw: Mapping[bytes, bytes],
        restore: Callable[[Any], Any],
    ) -> None:
        verified = self._verified(policy, job, queue, raw)
        if policy.keys is None:
            restore(raw)
        else:
            self._restore_verified(policy, job, raw, verified, restore)
        _check_lists(job)
        if verified.bound:
            attach(job, policy, raw)
        elif job.restore == restore:
            guard(job, lambda again: self._verified(policy, job, queue, again))

    def _restore_verified(
        self, policy: Policy, job: Job, raw: Mapping[bytes, bytes], verified: Verified, restore: Callable[[Any], Any]
    ) -> None:
        # RQ itself unpacks without a bound, and loads an old result: nothing here reads either.
        known = {**raw, b"data": verified.data}
        known.pop(b"exc_info", None)
        known.pop(b"result", None)
        used: Any = job.serializer
        inner = used.inner if isinstance(used, Sealed) else used
        job.serializer = serializer = Sealed(inner, verified.bound)
        serializer.verified = (verified.data, verified.start)
        restore(known)
        self.unsigned = not verified.start
        if self.unsigned:
            # Code that does not know keys yet reads its result.
            job.serializer = inner

    def _verified(self, policy: Policy, job: Job, queue: Queue | None, raw: Mapping[bytes, bytes]) -> Verified:
        if policy.keys is not None:
            verified = look_at(policy, job.id, queue.name if queue is not None else None, raw)
        else:
            verified = Verified(raw.get(b"data", b""), 0, False, "")
            check_callbacks(policy, raw)
        if policy.allowed and not verified.start:
            policy.check_allowed(_name_of_unsigned(job, verified.data, raw))
        return verified

    def counted(self, worker_key: str) -> list[list[bytes]]:
        """Return the commands that count the job where it was refused, or has no signature."""
        refused = self.refusal is not None and not self.unreadable
        found = (REFUSED, refused), (UNSIGNED, self.unsigned)
        return [[b"HINCRBY", worker_key.encode(), word.strip(), b"1"] for word, is_so in found if is_so]


def _name_of_unsigned(job: Job, data: bytes, raw: Mapping[bytes, bytes]) -> str:
    """Return what a job without a signature seems to call; its arguments, once loaded, can do anything."""
    if job.serializer is DefaultSerializer or isinstance(job.serializer, Sealed):
        try:
            name = loads_inert(unpacked(data))[0]
        except NotVerified:
            raise
        except Exception:  # noqa: BLE001 - a damaged pickle may raise anything
            raise NotVerified("it cannot be told what it calls") from None
        return name if isinstance(name, str) else ""
    # RQ writes the call there, unless the user wrote something else.
    return raw.get(b"description", b"").decode(errors="replace").partition("(")[0]


class _Bounded:
    """Stands for ``zlib`` in RQ's modules: nothing is unpacked beyond MAX_UNPACKED."""

    error = zlib.error
    compress = staticmethod(zlib.compress)

    @staticmethod
    def decompress(data: bytes) -> bytes:
        # It was unpacked where it was verified. An error that RQ takes for this takes longer.
        if is_sealed(data):
            return data
        found = inflated(data, MAX_UNPACKED)
        if found is None:
            raise zlib.error("larger than what is unpacked")
        return found


def use_in_jobs(policy: Policy) -> None:
    """Have RQ unpack with a bound in this process: it reads dependents that were not looked at."""
    if policy.keys is not None:
        rq.job.zlib = rq.results.zlib = _Bounded  # type: ignore[attr-defined, assignment]


def _check_lists(job: Job) -> None:
    """Raise ValueError where a field holds JSON that RQ reads and only fails at later, while it records the outcome."""
    for which in (job._dependency_ids, job.retry_intervals, job.repeat_intervals):
        if which is not None and type(which) is not list:
            raise ValueError(f"{printable(which, MAX_VALUE)} is no list")
    for one in job._dependency_ids:
        if type(one) is not str:
            raise ValueError(f"{printable(one, MAX_VALUE)} is no id of a job")
        # It raises for half of a character, which JSON can spell.
        one.encode()


def _restore_bare(job: Job, raw: Mapping[bytes, bytes], restore: Callable[[Any], Any]) -> list[str]:
    """Restore what may be read of a job that is not loaded, and leave all else in its hash as it is.

    Returns:
        The fields that cannot be read.
    """
    # What was read before an error, such as retries left, is not to stay.
    fresh, unread = vars(Job(job.id, connection=job.connection)), list[bytes]()
    vars(job).update({name: value for name, value in fresh.items() if name != "serializer"})
    for name in raw.keys() - _NEVER_READ:
        one = Job(job.id, connection=job.connection)
        try:
            one.restore({b"data": b"", name: raw[name]})
            _check_lists(one)
        except Exception:  # noqa: BLE001 - a value of others may make it raise anything
            unread.append(name)
    known = {b"data": b"", **{name: raw[name] for name in raw.keys() - _LEFT_OUT - set(unread)}}
    try:
        restore(known)
    except Exception:  # noqa: BLE001 - a job class of the user's may raise anything
        Job.restore(job, known)
    kept, to_dict = _KEPT.union(map(text, unread)), job.to_dict

    def little(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {name: value for name, value in to_dict(*args, **kwargs).items() if name not in kept}

    job.to_dict = little  # type: ignore[method-assign]
    return sorted(printable(name, MAX_VALUE) for name in unread)
