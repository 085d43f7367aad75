"""``SignedSerializer``: what it writes is signed for one use and one job, and it loads nothing else.

RQ tells a serializer neither the use nor the job, so both are taken from the function of RQ's that calls it. Where
another function calls it, what it writes can be loaded only by such a call: never as a job's call, meta or result.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, NamedTuple

from rq.serializers import DefaultSerializer
from rq.utils import utcformat

from ..errors import ConfigurationError
from .envelope import BOUND, CALL, META, OTHER, RESULT, expect, is_sealed, seal, unseal
from .policy import current

_RESULT_OR_META = b""
#: (module, function) that calls a serializer -> for what use.
_WRITERS = {
    ("rq.job", "data"): CALL,
    ("rq.job", "_serialize_meta"): META,
    ("rq.job", "save_meta"): META,
    ("rq.job", "to_dict"): _RESULT_OR_META,
    ("rq.results", "serialize"): RESULT,
    ("rq_pooled.horse.success", "_serialized"): RESULT,
}
_READERS = {
    ("rq.job", "_deserialize_data"): CALL,
    ("rq.job", "get_meta"): META,
    ("rq.job", "restore"): _RESULT_OR_META,
    ("rq.job", "result"): RESULT,
    ("rq.results", "restore"): RESULT,
}
#: What RQ makes of meta that it cannot load, and saves then.
_UNREAD = "unserialized"


class _Use(NamedTuple):
    """For what a serializer is called."""

    purpose: bytes
    job_id: str | None = None
    #: The job's own data, where a job object calls.
    data: Any = None
    #: Of meta: when the job was created.
    created: bytes | None = None


_OTHER = _Use(OTHER)


class Sealed:
    """A serializer around another one.

    Args:
        inner: writes the content.
        bound: the jobs are of a ``rq_pooled.Queue``, which signs their other fields, too.
    """

    def __init__(self, inner: Any, bound: bool = False) -> None:
        self.inner = inner
        self.bound = bound
        #: Data that was verified a moment ago, and where its content starts.
        self.verified: tuple[bytes | None, int] = (None, 0)

    def dumps(self, value: Any) -> bytes:
        """Return a value, signed.

        Raises:
            ConfigurationError: there is no key, or the value is too large.
        """
        policy, use = current(), _writing(sys._getframe(1), value)
        if policy.keys is None:
            raise _no_keys()
        if use.purpose == META and isinstance(value, dict) and value.keys() == {_UNREAD}:
            kept: Any = value[_UNREAD]
            # As it stood: signed anew it would pass for genuine. RQ 3 does the same.
            if isinstance(kept, bytes):
                return kept
        content: bytes = self.inner.dumps(value)
        if use.purpose == META and policy.unsigned and isinstance(use.data, bytes) and not is_sealed(use.data):
            return content
        called = _called(value) if use.purpose == CALL else (use.created or b"").decode()
        purpose = BOUND if use.purpose == CALL and self.bound else use.purpose
        return seal(policy.keys, purpose, use.job_id or "", called, content)

    def loads(self, data: bytes) -> Any:
        """Return a value whose signature is right.

        Raises:
            NotVerified: it is not signed, was altered, or was signed for another use or another job.
            ConfigurationError: there is no key.
        """
        verified, start = self.verified
        if data is verified:
            return self.inner.loads(data[start:-32] if start else data)
        policy, use = current(), _reading(sys._getframe(1), data)
        if policy.keys is None:
            raise _no_keys()
        if not is_sealed(data) and policy.unsigned and not is_sealed(use.data):
            return self.inner.loads(data)
        envelope = unseal(policy.keys, data)
        expect(envelope, BOUND + CALL if use.purpose == CALL else use.purpose, use.job_id, use.created)
        return self.inner.loads(data[envelope.start : -32])


def _no_keys() -> ConfigurationError:
    return ConfigurationError("SignedSerializer has no keys: set RQ_POOLED_SIGNING_KEYS or RQ_POOLED_SIGNING_KEYS_FILE")


def _writing(frame: FrameType, value: Any) -> _Use:
    name = frame.f_code.co_name
    purpose = _WRITERS.get((frame.f_globals.get("__name__", ""), name), OTHER)
    if purpose == OTHER:
        return _OTHER
    caller = frame.f_locals
    one: Any = caller["self"] if "self" in caller else caller["job"]
    if purpose == CALL:
        return _Use(CALL, one.id)
    if name == "serialize":
        return _Use(RESULT, one.job_id)
    if purpose == _RESULT_OR_META:
        purpose = META if one.meta is value else RESULT
    return _Use(purpose, one.id, one._data, utcformat(one.created_at).encode() if purpose == META else None)


def _reading(frame: FrameType, data: bytes) -> _Use:
    module = frame.f_globals.get("__name__", "")
    purpose = _READERS.get((module, frame.f_code.co_name), OTHER)
    if purpose == OTHER:
        return _OTHER
    caller = frame.f_locals
    if module == "rq.results":
        return _Use(RESULT, caller["job_id"])
    if purpose == _RESULT_OR_META:
        purpose = META if caller["obj"].get("meta") is data else RESULT
    one, created = caller["self"], None
    if purpose == META:
        # What stands in the hash: a job's own attribute may be of a moment ago.
        created = caller["obj"].get("created_at", b"") if "obj" in caller else utcformat(one.created_at).encode()
    return _Use(purpose, one.id, None if purpose == CALL else one._data, created)


def _called(call: Any) -> str:
    """Return the dotted name of what a job calls: of a method, with its class."""
    name, instance = call[0], call[1]
    # As RQ decides: an instance that is empty is not asked for its method.
    if not instance:
        return str(name)
    owner = instance if isinstance(instance, type) else type(instance)
    return f"{owner.__module__}.{owner.__qualname__}.{name}"


#: For queues and workers of plain RQ: ``--serializer rq_pooled.SignedSerializer``.
SignedSerializer = Sealed(DefaultSerializer)


def sealed(serializer: Any, bound: bool = True) -> Any:
    """Return a serializer that signs what this one writes; itself where nothing is signed, or it does so already."""
    if current().keys is None or isinstance(serializer, Sealed) and serializer.bound >= bound:
        return serializer
    return Sealed(serializer.inner if isinstance(serializer, Sealed) else serializer, bound)
