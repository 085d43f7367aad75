"""What an error of the server means: it is away for now, a right is missing, or what was sent is to blame."""

from __future__ import annotations

import re

from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..rq_api import key_prefix
from .finder import MasterAway
from .redirects import is_refusal, said

#: The server cannot be reached, or did not answer in time.
LOST = (RedisConnectionError, RedisTimeoutError)
#: What a server says when it lives but cannot serve for now. Each passes, or connecting anew mends it (after a
#: failover to another machine). The text decides, since errors from inside scripts arrive as text on 6.2. The class
#: decides, too, since redis-py takes the code off the text of the errors that it has a class for.
_AWAY = re.compile(
    r"(?<![\w-])(READONLY|LOADING|MASTERDOWN|UNBLOCKED|MISCONF|NOREPLICAS|BUSY|NOAUTH|WRONGPASS|TRYAGAIN|CLUSTERDOWN|"
    r"max number of clients)(?![\w-])"
)
# MasterDownError is a ClusterDownError, and MovedError an AskError: a node of a cluster does not serve the slot.
_AWAY_CLASSES = (ReadOnlyError, BusyLoadingError, ClusterDownError, TryAgainError, AskError)
#: What an access control list says, of a command and of one inside a script; 6.2 and 7.0 have the longer text.
_FORBIDDEN = re.compile(r"NOPERM|no permissions|ACL failure in script|user executing the script", re.IGNORECASE)
_PREFIX = key_prefix()
#: What an access control list has to allow.
NEEDED_RIGHTS = (
    f"let its user run all commands (but @dangerous) on the keys {_PREFIX}:* and {_PREFIX}_pooled:*, and use the "
    f"channels {_PREFIX}:pubsub:*; `rq-pooled acl worker` prints the rules"
)


class ServerAway(RedisConnectionError):
    """The server cannot serve for now. A ConnectionError: the cure is the same, to connect again later."""


class NotSent(RedisConnectionError):
    """The connection was lost already when a command was to be sent."""


def is_blamed(error: Exception) -> bool:
    """Tell whether what was in flight may have cost the connection: it was sent, and the server said nothing."""
    return not isinstance(error, NotSent) and not is_away(error)


def is_closed(error: Exception) -> bool:
    """Tell whether a connection was ended at its other end, without a word: others to that server may stand."""
    return isinstance(error, (RedisConnectionError, ConnectionError)) and is_blamed(error)


def check_away(error: Exception) -> None:
    """Raise ServerAway if ``error``, a reply of the server, says that it cannot serve for now."""
    if is_away(error):
        raise ServerAway(said(error)) from error


def check_lost(error: Exception) -> None:
    """Raise ``error`` unless it means that the server is away for now: a lost connection, or a reply that says so."""
    if not isinstance(error, LOST) and not (isinstance(error, ResponseError) and is_away(error)):
        raise error


def is_away(error: BaseException) -> bool:
    """Tell whether an error means that the server, or the master, is there but cannot serve for now."""
    if isinstance(error, MasterAway):
        return error.passing
    known = (ServerAway, *_AWAY_CLASSES)
    # A connection of redis-py's Sentinel raises another error, with this one as its context.
    if isinstance(error, known) or isinstance(error.__context__, known) or is_refusal(error):
        return True
    return _AWAY.search(str(error)) is not None


def is_forbidden(error: BaseException) -> bool:
    """Tell whether an error, of a command or from inside a script, means that the user lacks a right."""
    return isinstance(error, NoPermissionError) or _FORBIDDEN.search(str(error)) is not None
