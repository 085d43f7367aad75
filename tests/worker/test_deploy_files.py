"""The files of examples/deploy: each is what its platform's tool accepts, and its commands do what it says."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
import yaml
from commands import free_port
from redis import Redis
from rq.job import Job, JobStatus
from support import PYTHONPATH, WorkerProcess, wait_until
from webserver import request, running

from rq_pooled.embedded import EmbeddedServer

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "examples" / "deploy"
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.timeout(120)


def tool(name: str) -> str:
    """Return the path of a platform's tool; skips where it is not installed."""
    path = shutil.which(name, path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def accepts(*command: str) -> None:
    """Fail with what a tool says, unless it accepts a file."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr


def variables(path: Path) -> dict[str, str]:
    """Return the variables of a file of NAME=VALUE lines."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def unit() -> dict[str, list[str]]:
    """Return what the service file says, by name."""
    said: dict[str, list[str]] = {}
    for line in (DEPLOY / "shop-worker.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            said.setdefault(name, []).append(value)
    return said


def deployments() -> dict[str, Any]:
    """Return the pod specifications of the Kubernetes file, by the name of the deployment."""
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    found = [one for one in documents if one["kind"] == "Deployment"]
    return {one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in found}


def procfile() -> dict[str, str]:
    """Return the commands of the Procfile."""
    return dict(line.split(": ", 1) for line in (DEPLOY / "Procfile").read_text().splitlines())


def environment(url: str, **more: str) -> dict[str, str]:
    """Return what the platform gives to each process of the shop."""
    path = f"{ROOT / 'examples/flask_app'}{os.pathsep}{PYTHONPATH}"
    shared = {"RQ_POOLED_URL": url, "SHOP_TOKEN": "t0ken", "PYTHONPATH": path}
    return {**os.environ, **variables(DEPLOY / "shop.env"), **shared, **more}


def here(command: list[str]) -> list[str]:
    """Return a command of a file with the program of this environment."""
    return [sys.executable, "-m", {"rq-pooled": "rq_pooled"}.get(command[0], command[0]), *command[1:]]


@pytest.mark.parametrize(("name", "command"), [("shop-worker", "rq-pooled"), ("shop-web", "gunicorn")])
def test_systemd_accepts_the_units(tmp_path: Path, name: str, command: str) -> None:
    """systemd finds no unknown name, no wrong value and no missing program in the service files."""
    program = tmp_path / command
    program.symlink_to("/bin/true")
    text = (DEPLOY / f"{name}.service").read_text().replace(f"/srv/shop/.venv/bin/{command}", str(program))
    (tmp_path / f"{name}.service").write_text(text)
    accepts(tool("systemd-analyze"), "verify", "--man=no", str(tmp_path / f"{name}.service"))


def test_the_linter_accepts_the_dockerfile() -> None:
    """hadolint has nothing to say about the Dockerfile; versions are the user's to pin."""
    accepts(tool("hadolint"), "--ignore", "DL3013", str(DEPLOY / "Dockerfile"))


def test_the_schema_accepts_the_compose_file() -> None:
    """The compose file is what the Compose specification says."""
    schema = ("--builtin-schema", "vendor.compose-spec")
    accepts(tool("check-jsonschema"), "--quiet", *schema, str(DEPLOY / "compose.yaml"))


def test_the_compose_file_starts_no_server_without_a_password() -> None:
    """The server's password, and that of all who reach it, is what REDIS_PASSWORD says, and must be said."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    server, password = services["redis"]["command"], "${REDIS_PASSWORD:?set REDIS_PASSWORD}"
    assert server[server.index("--requirepass") + 1] == password
    for name in ("web", "worker"):
        assert services[name]["environment"]["RQ_POOLED_URL"] == f"redis://:{password}@redis:6379/0"


def test_the_schema_accepts_the_manifests() -> None:
    """The manifests are what the API of Kubernetes says, and hold no name that it does not know."""
    accepts(tool("kubernetes-validate"), "--strict", "--quiet", str(DEPLOY / "kubernetes.yaml"))


def test_jobs_have_less_time_than_the_platform_gives() -> None:
    """Everywhere a worker puts its jobs back before the platform sends SIGKILL."""
    given, kills = unit(), []
    (own,) = [one.partition("=")[2] for one in given["Environment"] if "SHUTDOWN_TIMEOUT" in one]
    kills.append((own, given["TimeoutStopSec"][0]))
    worker = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["worker"]
    kills.append((worker["environment"]["RQ_POOLED_SHUTDOWN_TIMEOUT"], worker["stop_grace_period"]))
    pod = deployments()["shop-worker"]
    named = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
    kills.append((named["RQ_POOLED_SHUTDOWN_TIMEOUT"], pod["terminationGracePeriodSeconds"]))
    for ours, theirs in kills:
        assert 0 < int(str(ours).rstrip("s")) <= int(str(theirs).rstrip("s")) - 5


def test_the_commands_agree() -> None:
    """All platforms run the same worker and the same web process."""
    docker = (DEPLOY / "Dockerfile").read_text().rpartition("CMD ")[2]
    pods = deployments()
    workers = [json.loads(docker), pods["shop-worker"]["containers"][0]["command"], procfile()["worker"].split()]
    workers.append([Path(word).name if word.startswith("/") else word for word in unit()["ExecStart"][0].split()])
    assert all(command == workers[0] for command in workers)
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert "command" not in compose["worker"]
    assert compose["web"]["command"] == pods["shop-web"]["containers"][0]["command"]


def test_an_order_is_taken_and_confirmed(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """The Procfile's two processes take an order and run it, each probe says yes, and SIGTERM ends it with 0."""
    pods, port = deployments(), free_port()
    env = environment(server.url, PORT=str(port))
    web = shlex.split(procfile()["web"].replace(":$PORT", f"127.0.0.1:{port}"))
    address = f"http://127.0.0.1:{port}"
    worker = WorkerProcess(here(procfile()["worker"].split()), env, tmp_path / "worker.log")
    try:
        with running(here(web)[1:], f"{address}/", tmp_path / "web.log", **env):
            wait_until(lambda: "Listening on" in worker.output(), what="the worker listens")
            status, body = request(f"{address}/orders", method="POST")
            assert status == 202
            job = Job.fetch(body["job"], connection=redis)
            wait_until(lambda: job.get_status() == JobStatus.FINISHED)
            assert job.return_value() == "Corner Shop has confirmed order 1"
            for probe in ("livenessProbe", "readinessProbe"):
                path = pods["shop-web"]["containers"][0][probe]["httpGet"]["path"]
                assert request(address + path)[0] == 200
            check = pods["shop-worker"]["containers"][0]["livenessProbe"]["exec"]["command"]
            wait_until(lambda: forked.run(here(check), env, 20).returncode == 0)
        assert worker.stop() == 0
        assert forked.run(here(check), env, 20).returncode == 2
    finally:
        if worker.process.poll() is None:
            worker.kill()
