"""Loads the Lua scripts: their texts, their hashes, and the rights that they need.

The typed function of each script stands in the module of its subject. It only builds a command, a tuple of words for
one EVALSHA. The caller sends it, and several can travel in one round trip.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from redis import Redis
from redis.exceptions import NoScriptError, ResponseError

from .. import rq_api
from ..wire import Command, Packed, Word, encoded
from . import keys
from .keys import NONE, RIGHTS

_FOLDER = Path(__file__).parent / "lua"

#: Scripts without which a worker is no worker, and what RQ's own handlers write besides.
_WORKING = ("admit", "aside", "claim", "commit", "heartbeat", "promote", "push_back", "register", "stalled")
_OF_RQ = {"XADD"}
#: Command -> whether it takes a key, and how many words behind it make the server look at the user's rights.
_WORDS: dict[str, tuple[bool, int]] = {
    "TIME": (False, 0),
    "SCAN": (False, 1),
    **dict.fromkeys(("DEL", "EXISTS", "GET", "HGETALL", "HKEYS", "HLEN", "LLEN", "LPOP", "PERSIST", "PTTL"), (True, 0)),
    **dict.fromkeys(("SCARD", "SRANDMEMBER", "TTL", "TYPE", "UNLINK", "ZCARD", "ZPOPMIN"), (True, 0)),
    **dict.fromkeys(("EXPIRE", "HDEL", "HEXISTS", "HGET", "HMGET", "HSTRLEN", "LINDEX", "LPOS", "LPUSH"), (True, 1)),
    **dict.fromkeys(("LPUSHX", "PEXPIRE", "RPUSH", "SADD", "SET", "SISMEMBER", "SREM", "ZRANK", "ZREM"), (True, 1)),
    **dict.fromkeys(("SSCAN", "ZSCAN", "ZSCORE"), (True, 1)),
    **dict.fromkeys(("HINCRBY", "HINCRBYFLOAT", "HSET", "LRANGE", "LREM", "LTRIM", "XREVRANGE", "ZADD"), (True, 2)),
    **dict.fromkeys(("ZCOUNT", "ZRANGE", "ZRANGEBYSCORE", "ZREMRANGEBYSCORE"), (True, 2)),
    **dict.fromkeys(("EXPIREAT", "HMSET", "HSETNX", "XTRIM", "ZINCRBY"), (True, 2)),
    "XADD": (True, 3),
}


class Script(NamedTuple):
    """A script as the server takes it."""

    text: str
    sha1: str


@cache
def scripts() -> dict[str, Script]:
    """Return all scripts by name; they depend on the installed RQ only, and are read once per process."""
    texts = {path.stem: _text(path.stem) for path in sorted(_FOLDER.glob("*.lua"))}
    return {name: Script(text, hashlib.sha1(text.encode()).hexdigest()) for name, text in texts.items()}


def call(name: str, keys: Sequence[str], *arguments: Word | Packed) -> Command:
    """Return the command that runs a script; keys and arguments are as in the header of its file.

    A script without keys is given one that never exists, by which a cluster knows where it belongs.
    """
    keys = keys or (NONE,)
    return ("EVALSHA", scripts()[name].sha1, len(keys), *keys, *arguments)


@cache
def _texts() -> dict[Any, str]:
    return {script.sha1: script.text for script in scripts().values()}


def load() -> list[Command]:
    """Return the commands that load all scripts into the server: needed once, and after a SCRIPT FLUSH."""
    # RQ's own scripts for rate limits are used by maintenance.
    texts = [*(script.text for script in scripts().values()), *rq_api.rate_limit_scripts().values()]
    return [("SCRIPT", "LOAD", text) for text in texts]


def with_text(command: Command) -> Command:
    """Return a call with the script's text instead of its hash, for a caller that cannot wait for the reply."""
    return ("EVAL", _texts()[command[1]], *command[2:])


def is_unknown(reply: Any) -> bool:
    """Tell whether the server did not know the script and did nothing, as after SCRIPT FLUSH or on a new master."""
    return isinstance(reply, NoScriptError) or (isinstance(reply, ResponseError) and "NOSCRIPT" in str(reply))


def run(send: Callable[[Command], Any], command: Command) -> Any:
    """Return the reply to the call of a script: one round trip if the server knows it, else three.

    Args:
        send: sends a command and waits for its reply; raises an error of the server.
    """
    try:
        return send(command)
    except ResponseError as error:
        if not is_unknown(error):
            raise
    send(("SCRIPT", "LOAD", _texts()[command[1]]))
    return send(command)


def run_script(client: Redis, command: Command) -> Any:
    """Return the reply to the call of a script over a client.

    Raises:
        redis.exceptions.RedisError: as any command.
    """
    execute: Any = client.execute_command  # redis-py leaves it untyped

    def send(words: Command) -> Any:
        try:
            return execute(*words)
        # Nothing was sent, because a word is a text that stands for other bytes, which is rare.
        except UnicodeEncodeError:
            return execute(*encoded(words))

    return run(send, command)


def rights() -> Command:
    """Ask which commands of a worker's scripts this user may not run; see rights.lua."""
    words: list[Word] = []
    for command in needed():
        filler = ["1"] * _WORDS[command][1]
        tried = [*([RIGHTS] if _WORDS[command][0] else []), *filler]
        words += [command, len(tried), *tried]
    return call("rights", [RIGHTS], *words)


def needed() -> list[str]:
    """Return the commands that a worker's scripts run, in order; DEL is last, since it removes the tried key."""
    named = {name for script in _WORKING for name in re.findall(r"'([A-Z]{3,})'", scripts()[script].text)}
    return sorted((named & _WORDS.keys()) | _OF_RQ, key=lambda name: (name == "DEL", name))


def _text(name: str) -> str:
    """Return a complete script: each line ``-- include name`` is replaced by a shared function."""
    text = (_FOLDER / f"{name}.lua").read_text()
    line = re.compile("^-- include (.+)\n", re.MULTILINE)
    text = line.sub(lambda found: (_FOLDER / "shared" / f"{found[1]}.lua").read_text(), text)
    text = _ask_rights(text)
    # The script gets what it must know of the installed RQ.
    text = text.replace("-- RQ\n", rq_api.lua_prelude()).replace("-- RQ limits\n", _limits())
    return _name_keys(text)


#: The names by which scripts know keys, and the keys or their prefixes, none with a character that Lua would have to
#: escape.
KEYS = {
    name: text
    for name, text in vars(keys).items()
    if name.isupper() and isinstance(text, str) and name not in ("PREFIX", "OURS")
}


def _name_keys(text: str) -> str:
    """Return a script that knows the keys it names, by a local variable each that it sets behind its header."""
    header = re.match("(?:--.*\n)*", text)
    assert header is not None
    # First of all, see there; a cluster wants a prefix with a hash tag.
    if "{" in keys.NONE:
        text = f"{header[0]}{(_FOLDER / 'shared' / 'slot_first.lua').read_text()}{text[header.end() :]}"
    used = sorted(KEYS.keys() & set(re.findall(r"\w+", re.sub("--.*", "", text))))
    names, values = ", ".join(used), ", ".join(f"'{KEYS[name]}'" for name in used)
    return f"{header[0]}local {names} = {values}\n{text[header.end() :]}" if used else text


def _limits() -> str:
    """Return the Lua text that tells scripts for rate limits about the installed RQ."""
    guarded = (_FOLDER / "shared" / "guarded_limit.lua").read_text()
    of_rq = rq_api.lua_limits()
    return rq_api.lua_prelude() + _ask_rights(guarded, of_rq) + of_rq


def commands_of(text: str) -> list[str]:
    """Return the commands that a script's text names, in order; DEL is last, since it removes the tried key."""
    code = re.sub("--.*", "", text)
    return sorted(set(re.findall("[A-Z]{3,}", code)) & _WORDS.keys(), key=lambda name: (name == "DEL", name))


#: The line at which a script asks for rights: ``-- rights first``, then the commands, by default all that follow, and a
#: key. While that key exists, a server that can only try commands is not asked again; it tries all that follow.
_RIGHTS_LINE = re.compile(r"^ *-- rights first(?: of ([A-Z ]+))?(?:: (.+))?\n", re.MULTILINE)


def _ask_rights(text: str, more: str = "") -> str:
    """Return a text that asks, at each line ``-- rights first``, for the rights to later commands and ``more``."""
    asked = (_FOLDER / "shared" / "rights_first.lua").read_text()

    def ask(line: re.Match[str]) -> str:
        every = commands_of(text[line.end() :] + more)
        chosen = line[1].split() if line[1] else every
        every = every if line[2] else chosen
        # One question is for our own keys; all others are for RQ's.
        ours = (chosen[0], "RIGHTS_OF_OURS")
        questions = [f"may('{name}', {key})" for name, key in [*((name, "RIGHTS_OF_RQ") for name in chosen), ours]]
        tries = [_try(name, key) for name, key in [*((name, "RIGHTS_OF_RQ") for name in every), ours]]
        filled = asked.replace("QUESTIONS", " and ".join(questions)).replace("COMMANDS", ", ".join(tries))
        return filled.replace("NOW_AND_THEN", line[2] or "nil")

    return _RIGHTS_LINE.sub(ask, text)


def _try(command: str, key: str) -> str:
    """Return the words with which a command is tried, as a Lua table: its name, any key, and fillers."""
    takes_key, more = _WORDS[command]
    words = [f"'{command}'", key if takes_key else "false", *["'1'"] * more]
    return "{ " + ", ".join(words) + " }"
