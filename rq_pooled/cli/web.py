"""``rq-pooled web``: serves the page on its own, for users of Django, FastAPI or nothing."""

from __future__ import annotations

import ipaddress
import os
import secrets
import signal
import socket
import sys
from typing import Any

import click

from ..config.secret_files import exposure, read_secret_file
from ..errors import TRY_AGAIN, ConfigurationError, RQPooledError
from .printing import say

#: The variable with one user and password; its name is no setting, since workers have no use for it.
CREDENTIALS = "RQ_POOLED_WEB_CREDENTIALS"
#: Requests at once. Each holds a connection of this process's pool while it asks.
THREADS = 6
#: Browsers' connections at once, and seconds after which one that says nothing is closed: anybody may open them.
_CONNECTIONS, _SILENT = 500, 20
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class PortTaken(RQPooledError):
    """Another program listens there."""

    exit_code = TRY_AGAIN


@click.command(short_help="Serve the page on its own.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0: any that is free.")
@click.option(
    "--credentials",
    "path",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help=f"Lines user:password. [{CREDENTIALS}=user:password; else a token is printed to the terminal]",
)
@click.option("--allow-host", "names", multiple=True, metavar="NAME", help="A name under which browsers call it.")
@click.option("--read-only", is_flag=True, help="Show everything, and change nothing.")
@click.option("-u", "--url", metavar="TEXT", help="The server; else RQ_POOLED_URL, RQ_REDIS_URL or REDIS_URL.")
def web(host: str, port: int, path: str | None, names: tuple[str, ...], read_only: bool, url: str | None) -> None:
    """Serve the page: what is wrong, throughput, failed jobs, queues, workers and connections.

    It listens on this machine only, unless --host says otherwise. It speaks HTTP: for others put a proxy with TLS
    before it, and name its host with --allow-host.
    """
    guarded_app, create_server = _server()
    credentials, local = _credentials(path), _is_loopback(host)
    if not credentials and not local:
        raise ConfigurationError(
            f"{host} can be reached from elsewhere: give --credentials, or {CREDENTIALS}=user:password"
        )
    if not credentials and not sys.stderr.isatty():
        raise ConfigurationError(
            "there are no credentials, and stderr is no terminal that could show a token alone: give --credentials, "
            f"or {CREDENTIALS}=user:password"
        )
    token = secrets.token_urlsafe(24)
    hosts = [*names, *(_LOOPBACK if local else (host, socket.gethostname(), *_LOOPBACK))]
    app = guarded_app(credentials, token, hosts, "read" if read_only else "write", url=url)
    # It begins no thread before it serves, and a Ctrl-C or SIGTERM ends it at once: nothing is under way but reading.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server = create_server(
            app,
            host=host,
            port=port,
            threads=THREADS,
            ident=None,
            max_request_body_size=1 << 20,
            connection_limit=_CONNECTIONS,
            channel_timeout=_SILENT,
            cleanup_interval=5,
        )
    except OSError as error:
        raise PortTaken(f"{host}:{port} cannot be listened on: {error.strerror or error}") from error
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{server.effective_port}"
    say(f"The page is at {address}/")
    sys.stdout.flush()
    if not credentials:
        say(f"Open it with its token: {address}/enter?token={token}", err=True)
    try:
        server.run()
    finally:
        server.close()


def _server() -> tuple[Any, Any]:
    """Return what makes the application, and the server.

    waitress serves it: one process with threads, so one bounded pool; it has no dependencies, and bounds headers,
    bodies and slow clients by itself. gunicorn forks workers, and each would have a pool.
    """
    try:
        from waitress import create_server  # type: ignore[import-untyped]

        from ..flask.standalone import guarded_app
    except ImportError as error:
        raise ConfigurationError(
            f"rq-pooled web needs Flask and waitress ({error}): pip install 'rq_pooled[web]'"
        ) from None
    return guarded_app, create_server


def _credentials(path: str | None) -> dict[str, str]:
    """Return user -> password of the file, else of the variable; what is wrong is told without any of it."""
    if path is None:
        source, lines = CREDENTIALS, [os.environ.get(CREDENTIALS, "")]
    else:
        source = path
        lines = read_secret_file(path, f"--credentials {path}").splitlines()
        if warning := exposure(path, f"--credentials {path}"):
            say(f"rq-pooled: {warning}", err=True)
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        user, colon, password = line.strip().partition(":")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not (user and colon and len(password) >= 8):
            raise ConfigurationError(f"{source}, line {number}: write user:password, with at least 8 characters")
        found[user] = password
    if path is not None and not found:
        raise ConfigurationError(f"{source} names no user: write lines user:password")
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
