"""The web side of one shard: takes the orders of its customers, and tells how many are packed.

RQ reads RQ_KEY_PREFIX when it is imported, so there is a process of this for each shard. It serves a free port of
loopback, and prints which. A shop would run it with gunicorn.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from packing import pack

from rq_pooled import Queue
from rq_pooled.errors import RedisUnavailable

queue = Queue("orders", default_result_ttl=3600)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer ``POST /orders/<customer>`` and ``GET /orders``."""
    status, headers, answer = "200 OK", [("Content-Type", "application/json")], {}
    try:
        if environ["REQUEST_METHOD"] == "POST":
            job = queue.enqueue(pack, int(environ["PATH_INFO"].rpartition("/")[2]))
            status, answer = "202 Accepted", {"job": job.id}
        else:
            answer = {
                "packed": queue.finished_job_registry.get_job_count(cleanup=False),
                "port": queue.connection.info("server")["tcp_port"],
            }
    except RedisUnavailable as error:
        # While the slot of this shard moves, its customers try again; the other shard's notice nothing.
        status, answer = "503 Service Unavailable", {"error": str(error)}
        headers.append(("Retry-After", "2"))
    start_response(status, headers)
    return [json.dumps(answer).encode()]


class _Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Log nothing."""


if __name__ == "__main__":
    # Ctrl-C reaches all processes of a terminal; the one that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with make_server("127.0.0.1", 0, application, _Threads, _Quiet) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
