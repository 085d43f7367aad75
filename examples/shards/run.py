"""Run a shop with two shards: for each prefix a worker and a web process, and one front for all customers.

    python examples/shards/run.py              until Ctrl-C
    python examples/shards/run.py --orders 100     place as many orders, show where they went, end

SHARD_URLS names a server for each shard, or one cluster for both: ``cluster://host:port,host:port/``. Without it each
shard has a server of its own, which ends with the shop (``pip install 'rq_pooled[embedded]'``). Needs RQ 3.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from front import Front
from redis.crc import key_slot

from rq_pooled.embedded import EmbeddedServer

HERE = Path(__file__).parent
#: The braces keep all keys of a shard in one slot, and so on one node. These two are far apart.
PREFIXES = ["{shop-a}", "{shop-b}"]


def ask(port: int, method: str, path: str) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON of a request."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def start(stack: ExitStack, words: list[str], prefix: str, url: str, out: int | None = None) -> subprocess.Popen[str]:
    """Start a process of a shard; it ends with the shop."""
    path = os.pathsep.join([str(HERE), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "RQ_KEY_PREFIX": prefix, "RQ_POOLED_URL": url, "PYTHONPATH": path}
    process = stack.enter_context(subprocess.Popen([sys.executable, *words], env=env, stdout=out, text=True))
    stack.callback(process.terminate)
    return process


def place(front: Front, orders: int) -> int:
    """Place an order for each of so many customers, wait until all are packed, and show which shard has packed them."""
    taken = dict.fromkeys(front.shards, 0)
    before = {prefix: ask(port, "GET", "/orders")[1].get("packed", 0) for prefix, port in front.shards.items()}
    deadline = time.monotonic() + 60
    for customer in range(1, orders + 1):
        while True:
            status, answer = ask(front.server_port, "POST", f"/orders/{customer}")
            # 503: the order was not taken, since the shard moves just now.
            if status != 503 or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        if status != 202:
            print(f"customer {customer}: {status} {answer}")
            return 1
        taken[front.shard_of(str(customer))] += 1
    deadline = time.monotonic() + 60
    while True:
        done = {prefix: ask(port, "GET", "/orders")[1] for prefix, port in front.shards.items()}
        packed = {prefix: done[prefix].get("packed", 0) - before[prefix] for prefix in taken}
        complete = all(packed[prefix] >= taken[prefix] for prefix in taken)
        if complete or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for prefix, number in taken.items():
        slot, port = key_slot(prefix.encode()), done[prefix].get("port")
        print(f"{prefix}  slot {slot:5}  on port {port}  {number} orders taken, {packed[prefix]} packed")
    return 0 if complete else 1


def main() -> int:
    """Start everything, wait, stop everything."""
    parser = argparse.ArgumentParser(description="A shop with two shards.", prog="python examples/shards/run.py")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--orders", type=int, default=0, help="place as many orders and end")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ExitStack() as stack:
        urls = os.environ.get("SHARD_URLS", "").split() or [stack.enter_context(EmbeddedServer()).url for _ in PREFIXES]
        if len(urls) not in (1, len(PREFIXES)):
            parser.error(f"SHARD_URLS names {len(urls)} servers: name 1 cluster, or {len(PREFIXES)} servers")
        shards = {}
        for prefix, url in zip(PREFIXES, urls * len(PREFIXES)):
            start(stack, ["-m", "rq_pooled", "worker", "--quiet", "--concurrency", "4", "orders"], prefix, url)
            web = start(stack, [str(HERE / "web.py")], prefix, url, subprocess.PIPE)
            assert web.stdout is not None
            # It says its port as soon as it serves.
            shards[prefix] = int(web.stdout.readline())
        front = stack.enter_context(Front(0 if arguments.orders else arguments.port, shards))
        if arguments.orders:
            threading.Thread(target=front.serve_forever, daemon=True).start()
            stack.callback(front.shutdown)
            return place(front, arguments.orders)
        print(f"  The shop: curl -X POST http://127.0.0.1:{front.server_port}/orders/17   Ctrl-C ends it.", flush=True)
        try:
            front.serve_forever()
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
