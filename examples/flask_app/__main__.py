"""Run the whole shop with one command: ``python examples/flask_app``: a Redis of its own, a worker, gunicorn.

RQ_POOLED_URL names another server. The page of Redis wants the token that is printed, or that SHOP_TOKEN names. Ctrl-C
ends everything. Needs ``pip install 'rq_pooled[flask,embedded]' gunicorn``; without gunicorn Flask's own server serves.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from secrets import token_urlsafe

from rq_pooled.embedded import EmbeddedServer

HERE = Path(__file__).parent


def main() -> int:
    """Start everything, wait for the end of the web server, stop everything."""
    parser = argparse.ArgumentParser(description="A shop on Flask and rq_pooled.", prog="python examples/flask_app")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--concurrency", type=int, default=4, help="jobs that the worker runs at once")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ExitStack() as stack:
        url = os.environ.get("RQ_POOLED_URL") or stack.enter_context(EmbeddedServer()).url
        token = os.environ.get("SHOP_TOKEN") or token_urlsafe()
        environment = {
            **os.environ,
            "RQ_POOLED_URL": url,
            "SHOP_TOKEN": token,
            "RQ_POOLED_APP": "webshop:create_app",
            "RQ_POOLED_CONCURRENCY": str(arguments.concurrency),
            "RQ_POOLED_BUDGET_NAME": "shop",
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]),
        }
        worker = [sys.executable, "-m", "rq_pooled", "worker", "--name", "packer", "orders"]
        address = f"127.0.0.1:{arguments.port}"
        web = [sys.executable, "-m", "flask", "--app", "webshop:create_app", "run", "--port", str(arguments.port)]
        if find_spec("gunicorn"):
            web = [sys.executable, "-m", "gunicorn", "--bind", address, "--workers", "2", "--threads", "4"]
            web.append("webshop:create_app()")
        processes = [subprocess.Popen(command, env=environment, cwd=HERE) for command in (worker, web)]
        print(
            f"\n  The shop: http://{address}/   Its Redis: http://{address}/operator?token={token}   Ctrl-C ends it.\n",
            flush=True,
        )
        try:
            return processes[1].wait()
        except KeyboardInterrupt:
            return 0
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                process.wait()


if __name__ == "__main__":
    sys.exit(main())
