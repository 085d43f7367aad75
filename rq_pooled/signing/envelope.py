"""The envelope around what a serializer wrote: what it is for, whose it is, what it calls, and a signature over all.

It begins with a byte that is no pickle and no zlib, so code without keys fails to load it instead of misreading it.
"""

from __future__ import annotations

import zlib
from hmac import compare_digest
from typing import NamedTuple

from ..errors import ConfigurationError, NotVerified
from ..foreign import inflated
from .keys import Keys

#: A call whose hash has a signature, a call that a serializer signed alone, meta, a result, and anything else.
BOUND, CALL, META, RESULT, OTHER = b"C", b"c", b"m", b"r", b"o"
MAGIC = b"\x00rqs1"
MAC = 32
#: The most that a job's data may be, unpacked.
MAX_UNPACKED = 64 * 1024 * 1024
_WORDS = {BOUND: "a call", CALL: "a call", META: "meta", RESULT: "a result", OTHER: "something else"}
_START = len(MAGIC)


class Envelope(NamedTuple):
    """One that was verified."""

    purpose: bytes
    #: Of the job, empty where its serializer did not know.
    job_id: bytes
    #: The dotted name that a call calls; of meta, when its job was created.
    name: bytes
    mac: bytes
    #: Where in the data the content stands.
    start: int


def is_sealed(data: object) -> bool:
    """Tell whether data is an envelope; nothing is verified."""
    return isinstance(data, bytes) and data.startswith(MAGIC)


def unverified(data: bytes) -> tuple[str, bytes]:
    """Return the name and the content of an envelope that nothing verified: to be shown, and never to be loaded."""
    name, content = (*data[_START + 1 :].split(b"\0", 3)[2:], b"", b"")[:2]
    return name.decode(errors="replace"), content[:-MAC]


def seal(keys: Keys, purpose: bytes, job_id: str, name: str, content: bytes) -> bytes:
    """Return content in an envelope, signed with the first key.

    Raises:
        ConfigurationError: the content is larger than a worker would unpack, or the name is no name.
    """
    whose, what = job_id.encode(), name.encode()
    if len(content) > MAX_UNPACKED - 2 * 1024 or len(whose) > 1000 or len(what) > 1000:
        raise ConfigurationError(
            f"{_WORDS[purpose]} of {len(content)} bytes cannot be signed: at most {MAX_UNPACKED // 2**20} MB, and "
            "names of 1000 bytes; keep large data elsewhere"
        )
    head = b"%b%b%b\0%b\0%b\0" % (MAGIC, purpose, keys.name, whose, what)
    if head.count(0) != 4:
        raise ConfigurationError(f"the name {name!r} contains a character that no name has: call another function")
    return b"".join((head, content, keys.secret.mac(head, content)))


def unseal(keys: Keys, data: bytes) -> Envelope:
    """Verify an envelope.

    Raises:
        NotVerified: it is none, of an unknown key, or was altered.
    """
    parts = data[_START + 1 : _START + 2100].split(b"\0", 3)
    if not data.startswith(MAGIC) or len(parts) != 4:
        raise NotVerified("it is not signed")
    name, job_id, what, _ = parts
    start = _START + 4 + len(name) + len(job_id) + len(what)
    secret = keys.all.get(name)
    if secret is None:
        shown = name[:32].decode("ascii", "replace")
        raise NotVerified(f"the key {shown!r} that signed it is not known here: add it to SIGNING_KEYS")
    mac = data[-MAC:]
    # A view: what is verified may have 64 MB.
    if start > len(data) - MAC or not compare_digest(secret.mac(memoryview(data)[:-MAC]), mac):
        raise NotVerified("its signature is wrong: it was altered, or signed with another secret")
    return Envelope(data[_START : _START + 1], job_id, what, mac, start)


def expect(envelope: Envelope, purposes: bytes, job_id: str | bytes | None, created: bytes | None = None) -> None:
    """Raise unless an envelope is for one of these purposes, and of this job where the job is known.

    Args:
        envelope: to be looked at.
        purposes: any of these.
        job_id: of the job.
        created: when it was created, for meta: an id may have had a job before.

    Raises:
        NotVerified: it was made for something else.
    """
    if envelope.purpose not in purposes:
        raise NotVerified(f"it was signed as {_WORDS.get(envelope.purpose, 'something else')}, for another use")
    if isinstance(job_id, str):
        job_id = job_id.encode("utf-8", "surrogateescape")
    if job_id is not None and envelope.job_id != job_id:
        raise NotVerified("it was signed for another job")
    if created is not None and envelope.name != created:
        raise NotVerified("it was signed for an earlier job of this id")


def unpacked(data: bytes) -> bytes:
    """Return a job's data as RQ unpacks it, at most MAX_UNPACKED of it.

    Raises:
        NotVerified: it is larger.
    """
    try:
        found = inflated(data, MAX_UNPACKED)
    except zlib.error:
        # RQ takes such data as they are.
        found = data
    if found is None or len(found) > MAX_UNPACKED:
        raise NotVerified(f"it has more than {MAX_UNPACKED // 2**20} MB unpacked, which is not loaded")
    return found
