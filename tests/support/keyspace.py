"""What a server holds, in a form in which two runs of the same jobs can be compared for equality."""

from __future__ import annotations

import re
import time
import zlib
from base64 import b64decode
from typing import Any

from keys import named
from redis import Redis
from rq.utils import utcparse

from rq_pooled.store.keys import ENDED

#: Seconds that two runs may differ in what they compute from the clock.
TOLERANCE = 8.0

_DATES = {
    "created_at",
    "enqueued_at",
    "started_at",
    "ended_at",
    "last_heartbeat",
    "birth",
    "death",
    "shutdown_requested_date",
}
_RQ_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z")
_HEX_ID = re.compile(r"\b[0-9a-f]{32}\b")
_FRAME = re.compile(r'  File "([^"]*)", line \d+, in (.*)\n(?:    .*\n)*')


class Near:
    """A number that equals every number within the tolerance."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Near) and abs(self.value - other.value) <= TOLERANCE

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return f"~{self.value:.1f}"


def dump(redis: Redis, began: float) -> dict[str, Any]:
    """Return all keys with type, time to live and content; what must differ between runs is replaced by a name.

    Times have to lie between ``began`` and now and to be written as RQ writes them; otherwise they stay as they are,
    and the comparison fails.
    """
    # Samples of what ended are no job's, and go by themselves.
    assert redis.ttl(ENDED) <= 3600 and redis.ttl(ENDED) != -1
    described = {_id(key): _describe(redis, key, began) for key in sorted(redis.keys()) if key != ENDED.encode()}
    return {key: value for key, value in described.items() if value[0] != "zset" or value[2]}


def differences(theirs: Any, ours: Any, where: str = "") -> list[str]:
    """Return where the two differ, a line each, and both values."""
    if type(theirs) is type(ours) and isinstance(theirs, dict):
        lines = []
        for key in sorted({*theirs, *ours}):
            lines += differences(theirs.get(key, "absent"), ours.get(key, "absent"), f"{where}/{key}")
        return lines
    if type(theirs) is type(ours) and isinstance(theirs, (list, tuple)) and len(theirs) == len(ours):
        return [line for i in range(len(ours)) for line in differences(theirs[i], ours[i], f"{where}[{i}]")]
    return [] if theirs == ours else [f"{where}: RQ {theirs!r}, we {ours!r}"]


def _describe(redis: Redis, key: bytes, began: float) -> tuple[Any, ...]:
    kind = redis.type(key).decode()
    ttl = redis.pttl(key)
    life: Any = Near(ttl / 1000) if ttl >= 0 else "persistent"
    if kind == "hash":
        raw = {name.decode(): value for name, value in redis.hgetall(key).items()}
        fields = {name: _field(key, name, value, began) for name, value in raw.items()}
        for earlier, later in (("started_at", "ended_at"), ("ended_at", "last_heartbeat")):
            if fields.get(earlier) == fields.get(later) == "<date>":
                fields[f"{earlier} <= {later}"] = raw[earlier] <= raw[later]
        return kind, life, fields
    if kind == "list":
        return kind, life, [_id(item) for item in redis.lrange(key, 0, -1)]
    if kind == "set":
        return kind, life, sorted(_id(item) for item in redis.smembers(key))
    if kind == "zset":
        members = redis.zrange(key, 0, -1, withscores=True)
        if key.startswith((named(b"rq:failed:"), named(b"rq:finished:"))):
            # An entry whose time has come (failure_ttl=0) goes with whatever cleans up next: now, or in ten minutes.
            members = [(member, score) for member, score in members if not 0 < score <= time.time()]
        return kind, life, {_id(member): _score(score, began) for member, score in members}
    if kind == "stream":
        entries = redis.xrange(key)
        assert all(began - 1 < int(id_.split(b"-")[0]) / 1000 < time.time() + 1 for id_, _ in entries)
        return kind, life, [{k.decode(): _entry(k.decode(), v, began) for k, v in f.items()} for _, f in entries]
    return kind, life, _id(redis.get(key))


def _score(score: float, began: float) -> Any:
    """Scores are points in time, relative to the beginning, or special values."""
    return Near(score - began) if 1e9 < score < 1e11 else score


def _field(key: bytes, name: str, value: bytes, began: float) -> Any:
    if name in _DATES and _is_date(value, began):
        return "<date>"
    if key.startswith(named(b"rq:execution:")) and name in ("created_at", "last_heartbeat"):
        return "<seconds>" if began - 1 < float(value) < time.time() + 1 else value
    if name == "exc_info":
        return _traceback(zlib.decompress(value).decode())
    if name == "data":
        return zlib.decompress(value)
    if key.startswith(named(b"rq:worker:")):
        if name == "pid":
            return "<pid>" if value.isdigit() else value
        if name == "ip_address":
            return "<address>"
        if name == "total_working_time":
            return Near(float(value))
    if name == "current_job_working_time":
        return float(value)
    return value if name == "meta" else _id(value)


def _entry(name: str, value: bytes, began: float) -> Any:
    if name in ("execution_started_at", "execution_ended_at"):
        return "<seconds>" if began - 1 < float(value) < time.time() + 1 and b"." in value else value
    if name == "execution_id":
        return "<id>" if _HEX_ID.fullmatch(value.decode()) else value
    if name == "exc_string":
        return _traceback(zlib.decompress(b64decode(value)).decode())
    return value


def _is_date(value: bytes, began: float) -> bool:
    text = value.decode()
    return bool(_RQ_DATE.match(text)) and began - 1 < utcparse(text).timestamp() < time.time() + 1


def _traceback(text: str) -> str:
    """Drop our own frames (and redis-py's, which depend on the kind of client), line numbers and addresses."""

    def frame(match: re.Match[str]) -> str:
        path = match.group(1)
        if "/rq_pooled/" in path or "/redis/" in path or "contextlib" in path:
            return ""
        if match.group(2) == "prepare_job_execution":  # a step of RQ's that the claim script has done before
            return ""
        return f"  {path.rpartition('/')[2]} in {match.group(2)}\n"

    text = re.sub(r" at \d{4}-\d\d-\d\d [\d:.+]+", " at <date>", text)
    return re.sub(r"0x[0-9a-f]+", "0x", _id(_FRAME.sub(frame, text).encode()))


def _id(value: bytes) -> Any:
    try:
        return re.sub(r"\b0x[0-9a-f]+", "0x", _HEX_ID.sub("<id>", value.decode()))
    except UnicodeDecodeError:
        return value
