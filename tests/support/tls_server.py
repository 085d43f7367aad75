"""A server with a certificate of its own, and the fixtures that start it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import free_port
from conftest import IN_CI
from keys import named

from rq_pooled.embedded import EmbeddedServer, EmbeddedServerError


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with key.pem and cert.pem, self-signed for 127.0.0.1 and localhost."""
    openssl = shutil.which("openssl")
    if openssl is None:
        (pytest.fail if IN_CI else pytest.skip)("no openssl on PATH")
    directory = tmp_path_factory.mktemp("tls")
    command = [str(openssl), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    files = ["-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
    subprocess.run([*command, *names, *files], check=True, capture_output=True, timeout=60)
    return directory


def tls_options(certificate: Path, port: int) -> dict[str, str | int]:
    """Return the server's options for TLS, without certificates of clients."""
    return {
        "tls-port": port,
        "tls-cert-file": str(certificate / "cert.pem"),
        "tls-key-file": str(certificate / "key.pem"),
        "tls-ca-cert-file": str(certificate / "cert.pem"),
        "tls-auth-clients": "no",
    }


class TLSServer:
    """A server that listens with TLS; its plain port is for looking at it."""

    def __init__(self, server: EmbeddedServer, port: int, certificate: Path) -> None:
        self.server = server
        self.port = port
        self.certificate = certificate
        self.url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate / 'cert.pem'}"

    def ours(self) -> list[str]:
        """Return the roles of rq_pooled's connections, in order, all of them over TLS."""
        entries = [
            entry for entry in self.server.client().client_list() if entry["name"].startswith(named("rq_pooled:"))
        ]
        assert all(entry["laddr"].endswith(f":{self.port}") for entry in entries)
        return sorted(entry["name"].rpartition(":")[2] for entry in entries)


@pytest.fixture
def tls(start_server: Callable[..., EmbeddedServer], certificate: Path) -> Iterator[TLSServer]:
    """A running server. Debian's Redis: the wheel's server may be built without TLS."""
    port = free_port()
    try:
        server = start_server(tls_options(certificate, port), kind="redis")
    except EmbeddedServerError as error:
        if IN_CI:
            raise
        pytest.skip(f"no server with TLS: {error}")
    yield TLSServer(server, port, certificate)
