"""Write page.png: the page of examples/flask_app after a few hundred orders, as a browser shows it (`make picture`).

It needs chromium on PATH.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
#: Longer than the page needs for a shop that has just begun.
PATIENCE = 40


def main() -> None:
    """Run the shop, give it work, and take the picture."""
    chromium = shutil.which("chromium") or sys.exit("chromium is not on PATH: apt-get install chromium")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "SHOP_TOKEN": "picture", "RQ_POOLED_HEARTBEAT_INTERVAL": "1"}
    shop = subprocess.Popen([sys.executable, ROOT / "examples" / "flask_app", "--port", str(port)], env=environment)
    try:
        answer(f"{address}/")
        for _ in range(30):
            answer(f"{address}/orders", b"")
        # A worker's first look at the server begins the chart.
        time.sleep(5)
        answer(f"{address}/burst", b"")
        subprocess.run(
            [chromium, "--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1180,1000",
             "--virtual-time-budget=3000", f"--screenshot={HERE / 'page.png'}", f"{address}/operator?token=picture"],
            check=True, timeout=60,
        )  # fmt: skip
    finally:
        shop.terminate()
        shop.wait(20)


def answer(url: str, data: bytes | None = None) -> None:
    """Wait until a request is answered."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            request = urllib.request.Request(url, data, {"Authorization": "Bearer picture"})
            urllib.request.urlopen(request, timeout=5).close()
            return
        except urllib.error.HTTPError:
            raise
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


if __name__ == "__main__":
    main()
