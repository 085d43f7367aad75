"""``python -m tests.chaos.faults``: one named fault at a time, on stock RQ and on rq_pooled, and what became of the
jobs.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from keys import named
from redis import Redis
from support import ROOT, wait_until

from . import journal, table
from .jobs import QUEUE
from .scene import Scene

CONTENDERS = ("stock", "ours")
#: Name -> what the table says, what happens.
FAULTS: dict[str, tuple[str, Callable[[Scene], None]]] = {}
#: What the server needs for a fault.
OPTIONS: dict[str, dict[str, Any]] = {"maxclients": {"maxclients": 20}}


def _fault(text: str) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    def register(function: Callable[[Scene], None]) -> Callable[[Scene], None]:
        FAULTS[function.__name__.replace("_", "-")] = text, function
        return function

    return register


@_fault("Redis restarts (3 s) while 4 jobs run and end; AOF on")
def restart(scene: Scene) -> None:
    """Stop it in order, and start it."""
    scene.run_jobs(2.0)
    scene.server.stop()
    time.sleep(3)
    scene.server.start()
    scene.over()


@_fault("Redis crashes (SIGKILL) and is back at once while 4 jobs run; AOF always")
def crash(scene: Scene) -> None:
    """Kill it, and start it."""
    scene.run_jobs(2.0)
    scene.server.kill()
    scene.server.start()
    scene.over()


@_fault("Redis is frozen for 10 s while 4 jobs run and end")
def freeze(scene: Scene) -> None:
    """Stop it without closing its connections."""
    scene.run_jobs(2.0)
    scene.server.pause()
    time.sleep(10)
    scene.server.resume()
    scene.over()


@_fault("`kill -9` of a worker with a running job; another worker is there")
def kill_worker(scene: Scene) -> None:
    """Kill a worker, not its horse."""
    scene.run_jobs(3.0, 1)
    scene.start(1)
    wait_until(lambda: scene.admin.scard(named("rq:workers")) == 2, 30, "the other worker")
    scene.first[0].process.send_signal(signal.SIGKILL)
    scene.over()


@_fault("a container is killed: worker and work-horse with a running job; another worker is there")
def kill_container(scene: Scene) -> None:
    """Kill both."""
    scene.run_jobs(3.0, 1)
    scene.start(1)
    wait_until(lambda: scene.admin.scard(named("rq:workers")) == 2, 30, "the other worker")
    horses = scene.horses()
    scene.first[0].process.send_signal(signal.SIGKILL)
    for horse in horses:
        horse.kill()
    scene.over()


@_fault("`kill -9` of one of 4 work-horses")
def kill_horse(scene: Scene) -> None:
    """Kill the process of one job."""
    scene.run_jobs(3.0)
    wait_until(lambda: len(scene.horses()) == 4, 10, "the horses")
    scene.horses()[0].kill()
    scene.over()


@_fault("all connections are cut (CLIENT KILL) while 4 jobs run")
def cut(scene: Scene) -> None:
    """Have the server close everybody's connections but ours."""
    scene.run_jobs(2.0)
    for entry in scene.admin.client_list():
        if entry["name"] != "chaos-admin":
            scene.admin.client_kill_filter(_id=entry["id"])
    scene.over()


@_fault("failover: for 3 s the server answers READONLY while 4 jobs run and end")
def readonly(scene: Scene) -> None:
    """Make it the replica of nobody."""
    scene.run_jobs(2.0)
    scene.admin.replicaof("127.0.0.1", 1)
    time.sleep(3)
    scene.admin.replicaof("NO", "ONE")
    scene.over()


@_fault("maxclients is reached when the worker starts, for 5 s")
def maxclients(scene: Scene) -> None:
    """Take all connections, start workers, and let go."""
    scene.enqueue(0.1)
    held = []
    for _ in range(30):
        client = Redis.from_url(scene.server.url, single_connection_client=False)
        try:
            client.ping()
        except Exception:  # noqa: BLE001 - full, as wanted
            client.close()
            break
        held.append(client)
    scene.start()
    time.sleep(5)
    for client in held:
        client.close()
    scene.over()


@_fault("SCRIPT FLUSH while 4 jobs run")
def script_flush(scene: Scene) -> None:
    """Make the server forget all scripts."""
    scene.run_jobs(2.0)
    scene.admin.script_flush()
    scene.over()


@_fault("FLUSHALL while 4 jobs run (their data is gone)")
def flushall(scene: Scene) -> None:
    """Empty it."""
    scene.run_jobs(2.0)
    scene.admin.flushall()
    scene.over()


@_fault("deploy: SIGTERM, SIGKILL 5 s later, new worker; a job of 12 s runs")
def deploy(scene: Scene) -> None:
    """What an orchestrator does."""
    scene.run_jobs(12.0, 1)
    worker = scene.first[0].process
    worker.terminate()
    try:
        worker.wait(5)
    except subprocess.TimeoutExpired:
        for horse in scene.horses():  # a container ends with all that is in it
            horse.kill()
        worker.kill()
        worker.wait()
    scene.start(1)
    scene.over()


@_fault("worker killed between popping a job and starting it, one queue; another is started")
def popped(scene: Scene) -> None:
    """Kill it there."""
    _die_between(scene, (QUEUE,))


@_fault("the same with two queues")
def popped_two_queues(scene: Scene) -> None:
    """Kill it there."""
    _die_between(scene, (QUEUE, "other"))


def _die_between(scene: Scene, queues: tuple[str, ...]) -> None:
    scene.enqueue(0.1, 1)
    scene.start(1, queues=queues, worker_class="chaos.dying." + scene.contender.capitalize())
    wait_until(lambda: scene.first[0].process.poll() is not None, 30, "its death")
    scene.start(1, queues=queues)
    scene.over()


@_fault("out of memory (maxmemory) for 3 s while 4 jobs run and end")
def oom(scene: Scene) -> None:
    """Deny what needs memory."""
    scene.run_jobs(2.0)
    scene.admin.config_set("maxmemory", 1)
    time.sleep(3)
    scene.admin.config_set("maxmemory", 0)
    scene.over()


def run_one(name: str, contender: str, directory: Path) -> dict[str, Any]:
    """Run one fault, with logs in ``directory``; return its result as plain data."""
    scene = Scene(contender, directory, OPTIONS.get(name))
    try:
        text, happen = FAULTS[name]
        happen(scene)
        return {"name": name, "runs": len(journal.read(scene.journal)), **scene.result(text).json()}
    finally:
        scene.close()


def _in_process(name: str, contender: str) -> dict[str, Any]:
    """Run one fault in a process of its own, so that several can run at once."""
    command = [sys.executable, "-m", __spec__.name if __spec__ else "tests.chaos.faults", "--one", name, contender]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=240)
    if done.returncode:
        return {
            "name": name,
            "contender": contender,
            "fault": FAULTS[name][0],
            "text": f"not measured: {done.stderr[-500:]}",
        }
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Run all faults, or those named."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="FAULT", help=f"of these: {', '.join(FAULTS)}")
    parser.add_argument("--contender", choices=CONTENDERS, action="append", help="only this one")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--write", action="store_true", help="write the rows into docs/reliability.md")
    parser.add_argument("--jobs", type=int, default=2, help="so many at once (default 2)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        with tempfile.TemporaryDirectory(prefix="fault-") as directory:
            print(json.dumps(run_one(*options.one, Path(directory))))
        return
    unknown = set(options.names) - set(FAULTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    todo = [(n, c) for n in options.names or FAULTS for c in options.contender or CONTENDERS]
    results = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for result in pool.map(lambda pair: _in_process(*pair), todo):
            print(
                json.dumps(result) if options.json else f"{result['contender']:5}  {result['fault']}: {result['text']}",
                flush=True,
            )
            results.append(result)
    if options.write:
        table.write(results, list(FAULTS))


if __name__ == "__main__":
    main()
