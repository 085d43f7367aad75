"""TCP proxies on loopback: one that loses replies, for what a client may conclude from that, and one that is slow."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time


class CutProxy:
    """Forward connections to a local server, and on demand cut one after its request went on and before the reply.

    ``cut_on(words)`` arms it: the next request that contains these bytes is forwarded, the server's reply to it is
    awaited (so the server has done it) and dropped, and the connection is closed. ``hold_on(words)`` instead keeps
    that request back until ``let_go()``, with the client's side closed: a request that arrives late.
    ``delay_on(words)`` forwards the request and keeps the replies of its connection back, until ``deliver()``.
    ``forget()`` is what a firewall does to connections that were idle for long: from then on they lead nowhere, and new
    ones work.
    """

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        #: Set when an armed cut has happened.
        self.done = threading.Event()
        self._words = b""
        self._hold = False
        self._held: tuple[socket.socket, bytes] | None = None
        self._delay = False
        self._delayed: socket.socket | None = None
        self._stop_r, self._stop_w = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="cut-proxy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop forwarding and close every connection."""
        self._stop_w.send(b".")
        self._thread.join()
        if self._held is not None:
            self._held[0].close()
        for sock in (self._listener, self._stop_r, self._stop_w):
            sock.close()

    def cut_on(self, words: bytes) -> None:
        """Arm: drop the reply to the next request that contains ``words``."""
        self.done.clear()
        self._hold, self._delay, self._words = False, False, words

    def hold_on(self, words: bytes) -> None:
        """Arm: keep the next request that contains ``words``, and close the client's side."""
        self.done.clear()
        self._hold, self._delay, self._words = True, False, words

    def delay_on(self, words: bytes) -> None:
        """Arm: keep the replies of the next connection that sends ``words``, and do not close it."""
        self.done.clear()
        self._hold, self._delay, self._words = False, True, words

    def deliver(self) -> None:
        """Let the replies go that were kept."""
        self._delayed = None
        self._stop_w.send(b"d")

    def forget(self) -> None:
        """Swallow from here on what comes over the connections that are open now."""
        self.done.clear()
        self._stop_w.send(b"f")
        assert self.done.wait(5)

    def let_go(self) -> None:
        """Send the request that was kept, and wait until the server has done it."""
        assert self._held is not None
        upstream, data = self._held
        self._held = None
        upstream.sendall(data)
        upstream.recv(65536)
        upstream.close()

    def _run(self) -> None:
        peers: dict[socket.socket, socket.socket] = {}
        clients: set[socket.socket] = set()
        forgotten: set[socket.socket] = set()

        def close(one: socket.socket, keep: socket.socket | None = None) -> None:
            other = peers.pop(one)
            peers.pop(other)
            clients.difference_update((one, other))
            forgotten.difference_update((one, other))
            for sock in (one, other):
                if sock is not keep:
                    sock.close()

        while True:
            heard = [peer for peer in peers if peer is not self._delayed]
            ready = select.select([self._listener, self._stop_r, *heard], [], [])[0]
            told = self._stop_r.recv(10) if self._stop_r in ready else b""
            if b"." in told:
                break
            if b"f" in told:
                forgotten.update(peers)
                self.done.set()
            if self._listener in ready:
                pair = _accept(self._listener, self._server_port)
                if pair is None:
                    continue
                client, upstream = pair
                peers[client], peers[upstream] = upstream, client
                clients.add(client)
            for sock in ready:
                if sock not in peers:
                    continue
                other = peers[sock]
                data = b""
                with contextlib.suppress(OSError):
                    data = sock.recv(1 << 20)
                if not data:
                    close(sock)
                elif sock in forgotten:
                    continue
                elif sock in clients and self._words and self._words in data:
                    self._words = b""
                    if self._delay:
                        self._delayed = other
                        other.sendall(data)
                        self.done.set()
                        continue
                    if self._hold:
                        self._held = (other, data)
                    else:
                        other.sendall(data)
                        other.recv(1 << 20)  # the first bytes of the reply: the server has done it
                    self.done.set()  # before the client notices: it may ask at once
                    close(sock, keep=other if self._hold else None)
                else:
                    with contextlib.suppress(OSError):
                        other.sendall(data)
        for sock in peers:
            sock.close()


class SlowProxy:
    """Forward connections to a local server, each of them ``rate`` bytes per second in either direction.

    ``rate`` may be changed while connections are open.
    """

    _CHUNK = 16 * 1024

    def __init__(self, server_port: int, rate: float) -> None:
        self.rate = rate
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._sockets: list[socket.socket] = []
        self._closing = threading.Event()
        threading.Thread(target=self._accept, name="slow-proxy", daemon=True).start()

    def close(self) -> None:
        """Stop forwarding and close every connection."""
        self._closing.set()
        for sock in (self._listener, *self._sockets):
            _shut(sock)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                pair = _accept(self._listener, self._server_port)
                if pair is None:
                    continue
                self._sockets += pair
                for source, target in (pair, pair[::-1]):
                    # So little is kept on the way that who sends much notices.
                    target.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
                    threading.Thread(target=self._forward, args=(source, target), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        due = 0.0
        with contextlib.suppress(OSError):
            while data := source.recv(self._CHUNK):
                target.sendall(data)
                due = max(time.monotonic(), due) + len(data) / self.rate
                self._closing.wait(max(0.0, due - time.monotonic()))
        for sock in (source, target):
            _shut(sock)


def _accept(listener: socket.socket, server_port: int) -> tuple[socket.socket, socket.socket] | None:
    """Return the next client and a connection to the server for it; None where the server is away."""
    client = listener.accept()[0]
    try:
        return client, socket.create_connection(("127.0.0.1", server_port))
    except OSError:
        client.close()
        return None


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
