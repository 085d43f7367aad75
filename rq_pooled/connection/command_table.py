"""Which commands of jobs may share a connection, and what the others do to the connection that they are lent.

The server's own table decides: COMMAND INFO is asked once for each name that is met. A built-in table stands in where
an ACL or a proxy refuses it. A command is not shared if it waits, changes the state of a connection, or is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..wire import Command

#: These change what later commands on the same connection mean, beyond a transaction. The connection is lent until the
#: stream is closed.
_LASTING = frozenset(
    b"ASKING AUTH HELLO MONITOR PSYNC QUIT READONLY READWRITE REPLCONF RESET SELECT SHUTDOWN SYNC".split()
)
#: Subcommands of CLIENT that change nothing about the connection that sends them.
_CLIENT_LOOKS = frozenset(b"GETNAME GETREDIR HELP ID INFO KILL LIST PAUSE TRACKINGINFO UNBLOCK UNPAUSE".split())
#: Ends and begins of a state that the connection has for a while.
TRANSACTION = frozenset(b"DISCARD EXEC MULTI UNWATCH WATCH".split())
SUBSCRIBE = frozenset(b"PSUBSCRIBE SSUBSCRIBE SUBSCRIBE".split())
UNSUBSCRIBE = frozenset(b"PUNSUBSCRIBE SUNSUBSCRIBE UNSUBSCRIBE".split())
#: These ask what has become of the writes of their own connection, and the job's writes went over the shared one.
WAITS_FOR_REPLICAS = frozenset((b"WAIT", b"WAITAOF"))
#: A server closes a connection on which it reads one of these: a browser was tricked into sending it HTTP.
_TREACHEROUS = frozenset((b"HOST:", b"POST"))
#: The server flags these "noscript" since no script may call them; a shared connection may.
_SCRIPTS = frozenset(b"EVAL EVALSHA EVALSHA_RO EVAL_RO FCALL FCALL_RO".split())
_SCRIPT_LOOKS = frozenset((b"EXISTS", b"LOAD"))
#: Subcommands of SCRIPT that leave the connection as it was; DEBUG has each later script of it debugged.
_SCRIPT_ENDS = _SCRIPT_LOOKS | frozenset((b"FLUSH", b"HELP", b"KILL", b"SHOW"))
#: Blocks only with the word BLOCK.
_READS_STREAMS = frozenset((b"XREAD", b"XREADGROUP"))
#: Where the time to wait stands (from the end if below 0), and how many of it are a second.
_BLOCKS = {
    **dict.fromkeys(b"BLMOVE BLPOP BRPOP BRPOPLPUSH BZPOPMAX BZPOPMIN".split(), (-1, 1.0)),
    **dict.fromkeys(b"BLMPOP BZMPOP".split(), (1, 1.0)),
    **dict.fromkeys(WAITS_FOR_REPLICAS, (-1, 1000.0)),
}
#: The built-in table: what Redis 7.0 flags neither "noscript" nor "blocking", but for what is treated above.
_SHARED = frozenset(
    b"""APPEND BITCOUNT BITFIELD BITFIELD_RO BITOP BITPOS COPY DBSIZE DECR DECRBY DEL DUMP ECHO EXISTS EXPIRE EXPIREAT
    EXPIRETIME FLUSHALL FLUSHDB GEOADD GEODIST GEOHASH GEOPOS GEORADIUS GEORADIUSBYMEMBER GEORADIUSBYMEMBER_RO
    GEORADIUS_RO GEOSEARCH GEOSEARCHSTORE GET GETBIT GETDEL GETEX GETRANGE GETSET HDEL HEXISTS HGET HGETALL HINCRBY
    HINCRBYFLOAT HKEYS HLEN HMGET HMSET HRANDFIELD HSCAN HSET HSETNX HSTRLEN HVALS INCR INCRBY INCRBYFLOAT INFO KEYS
    LASTSAVE LCS LINDEX LINSERT LLEN LMOVE LMPOP LPOP LPOS LPUSH LPUSHX LRANGE LREM LSET LTRIM MGET MOVE MSET MSETNX
    OBJECT PERSIST PEXPIRE PEXPIREAT PEXPIRETIME PFADD PFCOUNT PFMERGE PING PSETEX PTTL PUBLISH RANDOMKEY RENAME
    RENAMENX RESTORE RPOP RPOPLPUSH RPUSH RPUSHX SADD SCAN SCARD SDIFF SDIFFSTORE SET SETBIT SETEX SETNX SETRANGE SINTER
    SINTERCARD SINTERSTORE SISMEMBER SMEMBERS SMISMEMBER SMOVE SORT SORT_RO SPOP SPUBLISH SRANDMEMBER SREM SSCAN STRLEN
    SUBSTR SUNION SUNIONSTORE TIME TOUCH TTL TYPE UNLINK XACK XADD XAUTOCLAIM XCLAIM XDEL XGROUP XINFO XLEN XPENDING
    XRANGE XREVRANGE XSETID XTRIM ZADD ZCARD ZCOUNT ZDIFF ZDIFFSTORE ZINCRBY ZINTER ZINTERCARD ZINTERSTORE ZLEXCOUNT
    ZMPOP ZMSCORE ZPOPMAX ZPOPMIN ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANGESTORE ZRANK ZREM ZREMRANGEBYLEX
    ZREMRANGEBYRANK ZREMRANGEBYSCORE ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE ZUNION
    ZUNIONSTORE""".split()
)
#: A command of the server's administration may have no reply, as CLUSTER SYNCSLOTS CAPA in Valkey 9, and one that may
#: not stand in a transaction changes the connection.
_EXCLUSIVE_FLAGS = frozenset((b"admin", b"blocking", b"no_multi", b"noscript"))
#: Names that are remembered, and how long one may be: jobs may send anything.
_MOST_NAMES, _LONGEST_NAME = 1000, 40


class CommandTable:
    """What is known of the commands of one server. A name is looked up as it was written."""

    def __init__(self) -> None:
        #: Whether a command is shared; None where it depends on its words, see ``is_shared``.
        self.known: dict[bytes, bool | None] = dict.fromkeys(_SCRIPTS, True)
        self.known.update(dict.fromkeys(_LASTING | TRANSACTION | SUBSCRIBE | UNSUBSCRIBE, False))
        self.known.update(dict.fromkeys(WAITS_FOR_REPLICAS | _TREACHEROUS | {b"CLUSTER"}, False))
        self.known.update(dict.fromkeys(_READS_STREAMS | {b"CLIENT", b"SCRIPT"}))
        self._subcommands: dict[bytes, frozenset[bytes]] = {}

    def is_known(self, name: bytes) -> bool:
        """Tell whether the server need not be asked about this command."""
        if name in self.known:
            return True
        upper = name.upper()
        if upper not in self.known and len(self.known) < _MOST_NAMES and _is_askable(upper):
            return False
        if len(self.known) < _MOST_NAMES:
            self.known[name] = self.known.get(upper, False)
        return True

    @staticmethod
    def question(name: bytes) -> Command:
        """Return the command that asks the server about a command."""
        return ("COMMAND", "INFO", name)

    def learn(self, name: bytes, reply: Any) -> None:
        """Take the reply to ``question``; one that is an error, or of an odd shape, leaves it to the built-in table."""
        upper = name.upper()
        try:
            (row,) = reply
            if row is None:
                self.known[upper] = False
            elif len(row) > 9 and row[9]:
                shared = [sub[0].rpartition(b"|")[2].upper() for sub in row[9] if not _EXCLUSIVE_FLAGS & _flags(sub)]
                self._subcommands[upper] = frozenset(shared)
                self.known[upper] = None
            else:
                self.known[upper] = not _EXCLUSIVE_FLAGS & _flags(row)
        except (TypeError, ValueError, LookupError, AttributeError):
            self.known[upper] = upper in _SHARED
        self.is_known(name)

    def is_shared(self, name: bytes, words: Sequence[bytes]) -> bool:
        """Tell whether a command that is known may be sent on a shared connection. ``words`` begin with its name."""
        shared = self.known.get(name, self.known.get(name.upper(), False))
        if shared is not None:
            return shared
        upper = name.upper()
        second = words[1].upper() if len(words) > 1 else b""
        if upper in _READS_STREAMS:
            return b"BLOCK" not in (word.upper() for word in words[1:])
        if upper == b"SCRIPT":
            return second in _SCRIPT_LOOKS
        return second in self._subcommands.get(upper, ())


def is_harmless(words: Sequence[bytes]) -> bool:
    """Tell whether a command neither waits nor changes its connection, by the built-in table; one it lacks is not."""
    name = words[0].upper()
    return (
        name in _SHARED or name in _SCRIPTS or (name == b"SCRIPT" and [one.upper() for one in words[1:2]] == [b"LOAD"])
    )


def is_lasting(words: Sequence[bytes]) -> bool:
    """Tell whether a command that is not shared leaves the connection changed."""
    name, second = words[0].upper(), words[1].upper() if len(words) > 1 else None
    if second is None or name in _LASTING:
        return name in _LASTING
    return (
        (name == b"CLIENT" and second not in _CLIENT_LOOKS)
        or (name == b"SCRIPT" and second not in _SCRIPT_ENDS)
        or (name == b"CLUSTER" and second == b"SYNCSLOTS")
    )


def may_block(name: bytes) -> bool:
    """Tell whether a command, in capital letters, may wait on the server."""
    return name in _BLOCKS or name in _READS_STREAMS


def block_of(words: Sequence[bytes]) -> float | None:
    """Return the seconds that a command may wait on the server, 0 if it does not wait, None for ever."""
    name = words[0].upper()
    try:
        if name in _READS_STREAMS:
            place = next((i for i, word in enumerate(words) if word.upper() == b"BLOCK"), None)
            if place is None:
                return 0.0
            wait = float(words[place + 1]) / 1000
        elif name in _BLOCKS:
            index, unit = _BLOCKS[name]
            wait = float(words[index]) / unit
        else:
            return 0.0
    except (ValueError, LookupError):
        # The server will say what is wrong.
        return 0.0
    return wait if wait > 0 else None


def _is_askable(name: bytes) -> bool:
    return 0 < len(name) <= _LONGEST_NAME and name.isascii() and all(33 <= byte < 127 for byte in name)


def _flags(row: Any) -> frozenset[bytes]:
    return frozenset(flag if isinstance(flag, bytes) else str(flag).encode() for flag in row[2])
