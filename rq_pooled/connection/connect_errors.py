"""What went wrong while connecting, in words: what it means, what to change, and whether trying again helps.

redis-py reports what it sees last, often "Broken pipe" or a timeout. The reason is in what the server said before it
hung up, in the cause of the error, or in what the port speaks. ``last_words`` asks for it, and ``explain`` words it.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from redis.connection import SSLConnection, UnixDomainSocketConnection
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..deadline import clipped
from ..errors import TRY_AGAIN, USAGE
from .away import is_away
from .cluster import NoCluster

#: What a server at its limit says to a new connection.
FULL = "max number of clients"
_PROTECTED = "protected mode"
_LOGIN_WORDS = ("NOAUTH", "WRONGPASS", "invalid password")
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST")
#: Seconds for asking once more, and the part of it for what a server says before it is asked.
_ASKING, _LISTENING = 1.0, 0.3
_CHECK = "Check that the server runs, and RQ_POOLED_URL (or --url)"
_SPEAKS_TLS = "the server speaks TLS at this port, and URL does not"
_SPEAKS_NO_TLS = "the server does not speak TLS at this port, and URL does"


class Trouble(NamedTuple):
    """One reason why there is no connection."""

    reason: str
    #: What to change, an imperative.
    remedy: str
    #: 2 where a setting, the server's configuration or the login has to be changed first, else 75.
    exit_code: int = TRY_AGAIN
    #: The server comes back, or has room again, without a changed setting.
    passing: bool = False


class _SpeaksTLS(RedisConnectionError):
    """The port speaks TLS, and this connection did not."""


def explain(error: BaseException, connection: Any = None) -> Trouble:
    """Return what an error while connecting means.

    Args:
        connection: a connection to the same server whose port may be asked for a second, if nothing else tells.
    """
    chain, text = list(_chain(error)), (str(error) or type(error).__name__).rstrip(".")
    if any(isinstance(one, (AuthenticationError, AuthorizationError)) for one in chain) or _says(text, *_LOGIN_WORDS):
        return Trouble(text, "Check user and password in URL", USAGE)
    if FULL in text:
        remedy = "Close connections (CLIENT LIST shows who holds them), or raise the server's maxclients"
        return Trouble(f"the server is full: {FULL} reached", remedy, passing=True)
    if _PROTECTED in text:
        reason = "the server is in protected mode: it has no password, and takes no connections from other hosts"
        return Trouble(reason, "Give it a password (requirepass) and put that into URL", USAGE)
    for one in chain:
        if isinstance(one, _SpeaksTLS):
            return Trouble(_SPEAKS_TLS, "Write rediss:// instead of redis:// in URL", USAGE)
        if isinstance(one, NoCluster):
            return Trouble(text, "Write redis:// instead of cluster:// in URL (rediss:// with TLS)", USAGE)
        if isinstance(one, ssl.SSLCertVerificationError):
            return _of_certificate(text)
        if isinstance(one, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            full = "is not at its maxclients (it then says nothing over TLS)"
            remedy = f"Check that the server runs, {full}, and RQ_POOLED_URL (or --url)"
            return Trouble(text, remedy, passing=True)
        if isinstance(one, ssl.SSLError):
            if _says(str(one), *_NO_TLS):
                return Trouble(
                    f"{_SPEAKS_NO_TLS}: {text}", "Write redis:// instead of rediss://, or its TLS port", USAGE
                )
            return Trouble(text, "Check the parameters ssl_… in URL", USAGE)
        if isinstance(one, socket.gaierror):
            return Trouble(text, "Check the host in URL")
    if is_away(error):
        return Trouble(text, _CHECK, passing=True)
    if any(isinstance(one, ResponseError) for one in chain):
        wrong_database = "DB index" in text or "not an integer" in text
        return Trouble(
            text, "Check the database in URL" if wrong_database else "Check URL", USAGE if wrong_database else TRY_AGAIN
        )
    if any(isinstance(one, (RedisTimeoutError, TimeoutError)) for one in chain) and _answers_in_plain(connection):
        return Trouble(_SPEAKS_NO_TLS, "Write redis:// instead of rediss://, or its TLS port", USAGE)
    passing = isinstance(error, (RedisConnectionError, RedisTimeoutError, OSError))
    return Trouble(text, _CHECK, passing=passing)


def _of_certificate(text: str) -> Trouble:
    if "ismatch" in text:
        remedy = "Write the host in URL as the certificate names it, or add ssl_check_hostname=false"
    else:
        remedy = (
            "Add ssl_ca_certs=PATH (of the certificate that vouches for it) to URL, or ssl_cert_reqs=none where the "
            "network can be trusted (Heroku)"
        )
    return Trouble(text, remedy, USAGE)


def _says(text: str, *words: str) -> bool:
    return any(word in text for word in words)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what led to it."""
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def says_full(connection_class: type[Any], error: BaseException) -> bool:
    """Tell whether an error while connecting says, or over TLS may say, that the server is at its maxclients.

    Over TLS a full server closes without a word, since it cannot say anything before the handshake.
    """
    text = str(error)
    if FULL in text:
        return True
    tls = any("SSL" in cls.__name__ for cls in connection_class.__mro__)
    return tls and any(words in text for words in ("UNEXPECTED_EOF", "EOF occurred", "reset by peer"))


def last_words(connection: Any, error: Exception) -> Exception:
    """Return an error that says why the server hung up on a new connection; ``error`` itself where nothing tells.

    A server that is full or in protected mode says so and hangs up. What redis-py writes meanwhile breaks the pipe,
    and the words are lost. A second connection hears them, in at most a second of the deadline.
    """
    if isinstance(error, (RedisTimeoutError, AuthenticationError, AuthorizationError)) or is_away(error):
        return error
    if not isinstance(error, (RedisConnectionError, OSError)) or isinstance(connection, SSLConnection):
        return error
    ends = time.monotonic() + (clipped(_ASKING) or 0.0)
    try:
        with _open(connection, ends) as heard:
            try:
                heard.settimeout(_left(ends, _LISTENING))
                words = heard.recv(1024)
            except TimeoutError:
                words = b""
            if words.startswith(b"-"):
                text = words[1:].split(b"\r\n")[0].decode(errors="replace")
                return RedisConnectionError(text.removeprefix("ERR ").removeprefix("DENIED "))
        if not isinstance(connection, UnixDomainSocketConnection) and _speaks_tls(connection, ends):
            return _SpeaksTLS(_SPEAKS_TLS)
    except (OSError, ValueError, RedisError):
        pass
    return error


def _open(connection: Any, ends: float) -> socket.socket:
    if isinstance(connection, UnixDomainSocketConnection):
        opened = socket.socket(socket.AF_UNIX)
        opened.settimeout(_left(ends))
        opened.connect(connection.path)
        return opened
    return socket.create_connection((connection.host, int(connection.port)), timeout=_left(ends))


def _left(ends: float, most: float = _ASKING) -> float:
    return max(0.01, min(most, ends - time.monotonic()))


def _speaks_tls(connection: Any, ends: float) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is sent over it: only what it speaks is asked.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with _open(connection, ends) as plain:
        plain.settimeout(_left(ends))
        try:
            with context.wrap_socket(plain):
                return True
        except ssl.SSLError as error:
            # An alert comes from a TLS server that wants something else.
            return "ALERT" in str(error)


def _answers_in_plain(connection: Any) -> bool:
    """Tell whether a TLS connection timed out because the server speaks no TLS and waits for a line."""
    if not isinstance(connection, SSLConnection):
        return False
    ends = time.monotonic() + (clipped(_ASKING) or 0.0)
    try:
        with _open(connection, ends) as plain:
            plain.sendall(b"PING\r\n")
            plain.settimeout(_left(ends))
            return plain.recv(64)[:1] in (b"+", b"-")
    except (OSError, ValueError):
        return False
