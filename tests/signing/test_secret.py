"""The signature itself: it is HMAC-SHA256, and what cannot be told apart is not signed alike."""

from __future__ import annotations

import hmac

import pytest

from rq_pooled.errors import ConfigurationError, NotVerified
from rq_pooled.signing.envelope import CALL, MAX_UNPACKED, RESULT, expect, seal, unseal
from rq_pooled.signing.job import sign
from rq_pooled.signing.keys import Secret, parse_keys

KEYS = parse_keys("k1:a-secret-of-the-tests", "the test")


@pytest.mark.parametrize("length", [1, 16, 63, 64, 65, 200])
def test_it_is_hmac_sha256(length: int) -> None:
    """With secrets of any length, a signature is that of the standard library."""
    secret, data = bytes(range(length)), b"data" * length
    assert Secret(secret).mac(data) == hmac.digest(secret, data, "sha256")
    assert Secret(secret).mac(data, b"more") == hmac.digest(secret, data + b"more", "sha256")


def test_fields_cannot_run_together() -> None:
    """Two jobs whose fields differ in where one ends have two signatures; absent and empty have one, as for RQ."""
    data = seal(KEYS, CALL, "a", "x", b"")

    def of(job_id: str, **fields: object) -> bytes:
        return sign(KEYS, job_id, fields, data)

    assert of("a", origin="bc") != of("ab", origin="c")
    assert of("a", success_callback_name="x") != of("a", failure_callback_name="x")
    assert of("a", timeout=0) != of("a")
    with pytest.raises(ConfigurationError, match="zero byte"):
        of("a", success_callback_name="x\0y")
    assert of("a", success_callback_name="") == of("a", success_callback_name=None) == of("a")


def test_every_byte_counts() -> None:
    """An envelope with any byte changed, left out or added does not verify."""
    whole = seal(KEYS, RESULT, "job", "", b"content")
    expect(unseal(KEYS, whole), RESULT, "job")
    changed = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
    for data in (*changed, *(whole[:i] for i in range(len(whole))), whole + b"x", b"x" + whole, b""):
        with pytest.raises(NotVerified):
            expect(unseal(KEYS, data), RESULT, "job")


def test_what_no_worker_would_load_is_not_signed() -> None:
    """Content that is larger than a worker unpacks, and names with a zero byte, are refused where they are made."""
    for name, content in (("x", bytes(MAX_UNPACKED)), ("x\0y", b""), ("x" * 1001, b"")):
        with pytest.raises(ConfigurationError, match=r"cannot be signed|no name has"):
            seal(KEYS, CALL, "a", name, content)
