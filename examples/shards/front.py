"""Chooses the shard of each customer, and passes the request on to its web process. It needs neither Redis nor RQ.

A shop would have its load balancer do this.
"""

from __future__ import annotations

from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from zlib import crc32


class Front(ThreadingHTTPServer):
    """Serves all shards at one address.

    Args:
        shards: the port of the web process of each prefix. Their order decides which customers a shard has.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, shards: dict[str, int]) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.shards = shards

    def shard_of(self, customer: str) -> str:
        """Return the prefix of a customer's shard: always the same one, in all processes."""
        return list(self.shards)[crc32(customer.encode()) % len(self.shards)]


class _Handler(BaseHTTPRequestHandler):
    server: Front

    def do_POST(self) -> None:
        """Pass ``POST /orders/<customer>`` on."""
        customer = self.path.removeprefix("/orders/")
        if not (customer.isascii() and customer.isdigit()):
            self.send_error(404)
            return
        shard = self.server.shard_of(customer)
        connection = HTTPConnection("127.0.0.1", self.server.shards[shard], timeout=30)
        try:
            connection.request("POST", self.path)
            answer = connection.getresponse()
            body = answer.read()
        except OSError:
            self.send_error(502, explain=f"the web process of {shard} does not answer")
            return
        finally:
            connection.close()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Shard", shard)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""
