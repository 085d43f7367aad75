"""What the signature of a job binds, beside its data: id, queue, dependencies, callbacks, webhooks, rules of retries.

It stands in a field of its own in the job's hash. RQ's ``save`` writes single fields and leaves it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from hmac import compare_digest
from typing import Any, NamedTuple

from ..errors import ConfigurationError, NotVerified
from .envelope import BOUND, CALL, MAC, META, Envelope, expect, is_sealed, unpacked, unseal
from .keys import Keys
from .policy import Policy

#: The field of a job's hash with its signature: the key's name, whether it was written with meta, and the signature.
FIELD = "rq_pooled:signature"
CALLBACKS = ("success_callback_name", "failure_callback_name", "stopped_callback_name")
#: The fields that its producer decides. What workers write during a job's life cannot be among them.
SIGNED = (
    *CALLBACKS,
    *("success_callback_timeout", "failure_callback_timeout", "stopped_callback_timeout", "webhooks", "timeout"),
    *("retry_intervals", "repeat_intervals", "rq_pooled:retry"),
    *("dependency_ids", "dependency_id", "allow_dependency_failures"),
    # It tells apart jobs that have one id after another: meta names it, too.
    "created_at",
)
_SIGNED = tuple(name.encode() for name in SIGNED)
#: As text, and as Redis has them.
NAMES = tuple(zip(SIGNED, _SIGNED))
_EMPTY = (b"",) * len(SIGNED)
_ZEROS = len(SIGNED) + 3
_CALLS = BOUND + CALL
_CALLBACKS = tuple(name.encode() for name in CALLBACKS)
_FIELD, _PURPOSE = FIELD.encode(), b"rq_pooled job 3"
#: Stands in FIELD for a job that was written with meta.
_WITH_META = b"m"


class Verified(NamedTuple):
    """A job's data after it was looked at."""

    #: As RQ's ``restore`` takes it: unpacked.
    data: bytes
    #: Where in it the content stands; 0 for a job that is not signed.
    start: int
    #: It has a signature that binds its fields.
    bound: bool
    #: The dotted name of what it calls, as its producer signed it.
    name: str


def sign(keys: Keys, job_id: str, fields: Mapping[str, Any], data: bytes, has_meta: bool = False) -> bytes:
    """Return the value of FIELD for a job that is saved.

    Args:
        keys: the first signs.
        job_id: of the job.
        fields: as RQ's ``to_dict`` returns them.
        data: the job's envelope.
        has_meta: its hash has meta with it. RQ never removes meta, so a hash without it is refused then.
    """
    get = fields.get
    values = [b"" if value is None or value == "" else as_written(value) for value in map(get, SIGNED)]
    mark = _WITH_META if has_meta else b""
    text = _text(job_id.encode(), as_written(get("origin")), data[-MAC:], mark, values)
    if text is None:
        raise ConfigurationError(
            f"job {job_id} cannot be signed: its id, queue, a dependency, a callback or webhook contains a zero byte; "
            "leave it out"
        )
    return b"%b:%b:%b" % (keys.name, mark, keys.secret.mac(text).hex().encode())


def as_written(value: Any) -> bytes:
    """Return a value as redis-py writes it."""
    if type(value) is bytes:
        return value
    return b"" if value is None else str(value).encode("utf-8", "surrogateescape")


def _text(job_id: bytes, origin: bytes, mac: bytes, mark: bytes, values: list[bytes]) -> bytes | None:
    """Return what is signed; None if it could be read in two ways.

    What is not there is the same as what is empty, as for RQ. So the number of zero bytes is always the same.
    """
    text = b"\0".join((_PURPOSE, job_id, origin, mark, *values))
    return mac + text if text.count(0) == _ZEROS else None


def verify(policy: Policy, job_id: str, queue: str | None, raw: Mapping[bytes, bytes]) -> Verified:
    """Look at a job's hash before anything of it is loaded.

    Args:
        policy: with keys.
        job_id: under which the hash stands.
        queue: from which the job was taken; None where that is not known.
        raw: the hash.

    Raises:
        NotVerified: with the reason.
    """
    keys = policy.keys
    assert keys is not None
    whose = job_id.encode("utf-8", "surrogateescape")
    data = unpacked(raw.get(b"data", b""))
    if policy.unsigned and _FIELD not in raw and not is_sealed(data):
        if is_sealed(raw.get(b"meta")):
            _verify_meta(keys, job_id, raw)
        return Verified(data, 0, False, "")
    envelope = unseal(keys, data)
    expect(envelope, _CALLS, whose)
    if envelope.purpose == BOUND:
        origin = raw.get(b"origin", b"")
        if queue is not None and origin != queue.encode("utf-8", "surrogateescape"):
            raise NotVerified("it was signed for another queue")
        _verify_fields(keys, whose, origin, envelope, raw)
    else:
        _check_unbound(policy, raw)
    if raw.get(b"meta"):
        _verify_meta(keys, job_id, raw)
    return Verified(data, envelope.start, envelope.purpose == BOUND, envelope.name.decode())


def look_at(policy: Policy, job_id: str, queue: str | None, raw: Mapping[bytes, bytes]) -> Verified:
    """Verify a job's hash, see ``verify``, and what it calls.

    Raises:
        NotVerified: with the reason. What an unsigned job calls is not looked at.
    """
    verified = verify(policy, job_id, queue, raw)
    if policy.allowed:
        if verified.start:
            policy.check_allowed(verified.name)
        check_callbacks(policy, raw)
    return verified


def check_callbacks(policy: Policy, raw: Mapping[bytes, bytes]) -> None:
    """Raise NotVerified if a callback may not be called."""
    for field in _CALLBACKS:
        if name := raw.get(field):
            policy.check_allowed(name.decode(errors="replace"), "one of its callbacks is")


def _verify_fields(keys: Keys, job_id: bytes, origin: bytes, envelope: Envelope, raw: Mapping[bytes, bytes]) -> None:
    name, _, rest = raw.get(_FIELD, b"").partition(b":")
    mark, _, given = rest.partition(b":")
    secret = keys.all.get(name)
    if secret is None:
        raise NotVerified("the signature of its fields is missing, or of a key that is not known here")
    text = _text(job_id, origin, envelope.mac, mark, list(map(raw.get, _SIGNED, _EMPTY)))
    if text is None or not compare_digest(secret.mac(text).hex().encode(), given):
        raise NotVerified(
            "the signature of its fields is wrong: its queue, dependencies, callbacks, webhooks, timeout or rules "
            "of retries were altered"
        )
    if mark and not raw.get(b"meta"):
        raise NotVerified("its meta was removed")


def _check_unbound(policy: Policy, raw: Mapping[bytes, bytes]) -> None:
    if not policy.unbound:
        raise NotVerified(
            "a serializer signed it, which binds neither queue nor callbacks: enqueue with rq_pooled.Queue, or set "
            "SIGNING_UNBOUND=yes"
        )
    if any(raw.get(field) for field in (*_CALLBACKS, b"webhooks")):
        raise NotVerified("it has callbacks or webhooks, which a serializer cannot sign: enqueue with rq_pooled.Queue")


def _verify_meta(keys: Keys, job_id: str, raw: Mapping[bytes, bytes]) -> None:
    meta = raw.get(b"meta")
    if meta:
        try:
            expect(unseal(keys, meta), META, job_id, raw.get(b"created_at", b""))
        except NotVerified as error:
            raise NotVerified(f"its meta does not verify: {error}") from None
