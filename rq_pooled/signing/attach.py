"""Has a job object write its signature whenever it is saved, and verify it whenever it is read again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rq.utils import utcformat

from ..errors import ConfigurationError, NotVerified
from .envelope import is_sealed
from .job import CALLBACKS, FIELD, NAMES, SIGNED, as_written, look_at, sign, verify
from .policy import Policy
from .serializer import Sealed

#: The attribute of a job object that signs itself.
_MARK = "_rq_pooled_signs"


def attach(job: Any, policy: Policy, kept: Mapping[bytes, bytes] | None = None) -> None:
    """Have a job sign itself.

    Args:
        job: an RQ job. Its serializer is a ``Sealed``.
        policy: with keys.
        kept: its hash, if there is one: RQ's ``save`` leaves fields that RQ does not know.
    """
    keys = policy.keys
    if keys is None or getattr(job, _MARK, False):
        return
    # On the object: job classes are the user's.
    to_dict, had_meta = job.to_dict, bool(kept and kept.get(b"meta"))

    def look(raw: Mapping[bytes, bytes]) -> None:
        if not look_at(policy, job.id, None, raw).bound:
            raise NotVerified("the signature of its fields is missing")

    def signed(*args: Any, **kwargs: Any) -> dict[str, Any]:
        fields: dict[str, Any] = to_dict(*args, **kwargs)
        data = job.data
        if not is_sealed(data):
            raise ConfigurationError(
                f"job {job.id} cannot be signed: its serializer does not sign; leave it the queue's serializer"
            )
        all_fields = fields
        if kept:
            all_fields = {name: value for name, key in NAMES if (value := kept.get(key)) is not None}
            all_fields.update(fields)
        fields[FIELD] = sign(keys, job.id, all_fields, data, had_meta or "meta" in fields)
        return fields

    job.to_dict = signed
    guard(job, look)
    setattr(job, _MARK, True)


def guard(job: Any, look: Callable[[Mapping[bytes, bytes]], object]) -> None:
    """Have a job look at its hash, too, when it is read again: ``refresh`` would take what was changed meanwhile."""
    restore = job.restore

    def guarded(raw: Mapping[bytes, bytes]) -> Any:
        try:
            look(raw)
        except NotVerified as error:
            raise NotVerified(f"job {job.id} was changed in Redis and is not read again: {error}") from None
        return restore(raw)

    job.restore = guarded


def sign_for(queue: Any, job: Any, created: bool = False) -> bool:
    """Have a job that is about to be enqueued sign itself, if it is new, or verifies and changes its queue or its call.

    Returns whether it is new.

    Args:
        queue: with a ``Sealed`` serializer.
        job: created in this process, or fetched.
        created: the queue has just created it. Otherwise it may be one that was fetched, and whose arguments were set
            since: what it holds may be what others wrote into its hash. One of ``Job.create`` is told from it by the
            time of its creation, which others can remove with the hash: so with callbacks it has to verify, too.

    Raises:
        NotVerified: it was fetched and does not verify: signing it would make a forged job genuine.
    """
    policy = queue.signing
    if policy.keys is None or _MARK in job.__dict__:
        return False
    is_unread = isinstance(job._data, bytes)
    # As it is, its own worker decides.
    if is_unread and (job.origin == queue.name or not is_sealed(job.data)):
        return False
    raw = {} if created else queue.connection.hgetall(job.key)
    if created or not (is_unread or _could_harm(job) or _stands_for(job, raw)):
        _prepare(queue, job)
        attach(job, policy)
        return True
    _sign_fetched(queue, job, raw, is_unread)
    return False


def _sign_fetched(queue: Any, job: Any, raw: Mapping[bytes, bytes], is_moved: bool) -> None:
    """Sign a job that was fetched, or may have been, if what it holds verifies: as it was read, or but for its call."""
    policy = queue.signing
    if is_moved:
        fields = {**job.to_dict(), "data": job.data}
    else:
        _prepare(queue, job)
        fields = job.to_dict()
        # Its call is this process's own.
        del fields["data"]
    mine = {name: as_written(fields[name]) for name in (*SIGNED, "origin", "data") if name in fields}
    try:
        verified = verify(policy, job.id, None, {**raw, **{name.encode(): value for name, value in mine.items()}})
    except NotVerified as error:
        what = "moved" if is_moved else "signed"
        advice = "" if is_moved else "; create one with callbacks or webhooks by Queue.create_job or Queue.enqueue"
        raise NotVerified(f"job {job.id} is not {what} for the queue {queue.name!r}: {error}{advice}") from None
    # A call that was set here has been sealed already. Without a signature beside it, it would be refused.
    if verified.bound or not is_moved:
        job.serializer = queue.serializer
        attach(job, policy, raw)


def _prepare(queue: Any, job: Any) -> None:
    if not isinstance(job.serializer, Sealed) or not job.serializer.bound:
        job.serializer = queue.serializer
    if job.timeout is None:
        job.timeout = queue._default_timeout


def _stands_for(job: Any, raw: Mapping[bytes, bytes]) -> bool:
    """Tell whether a job may have been read from this hash; one that was made here is younger."""
    created_at = raw.get(b"created_at")
    return bool(raw) and (not created_at or created_at == utcformat(job.created_at).encode())


def _could_harm(job: Any) -> bool:
    """Tell whether a job holds what runs or sends something beside its call."""
    return bool(getattr(job, "webhooks", None)) or any(getattr(job, f"_{name}") for name in CALLBACKS)
