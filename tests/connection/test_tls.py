"""TLS: the same few connections, each with its one handshake, against a server with a certificate of its own."""

from __future__ import annotations

from pathlib import Path

import crash_jobs
import pytest
from commands import free_port, refusal, run
from keys import named
from redis import Redis
from redis.exceptions import RedisError
from rq.job import Job
from support import running_worker, wait_until
from tls_server import TLSServer, tls_options
from topology import SERVICE, Sentinel

import rq_pooled
from rq_pooled.config import Settings
from rq_pooled.errors import ServerUnreachable
from rq_pooled.pool import Pool, get_connection

pytestmark = pytest.mark.timeout(120)


def finished(job: Job) -> bool:
    """Tell whether a job went well."""
    return job.get_status() == "finished"


def test_a_worker_and_a_queue(tls: TLSServer, tmp_path: Path) -> None:
    """Over rediss:// a worker keeps its two connections and a queue its one, however many jobs: no handshake per
    job.
    """
    connection = get_connection(Settings(url=tls.url))
    queue = rq_pooled.Queue("q", connection=connection)
    looking = tls.server.client()
    with running_worker(tls.url, "q", log=tmp_path / "log", concurrency=4) as worker:
        first = queue.enqueue(crash_jobs.nothing)
        wait_until(lambda: finished(first), what="a first job")
        assert tls.ours() == ["command", "listen", "web"]
        before = looking.info("stats")["total_connections_received"]
        jobs = [queue.enqueue(crash_jobs.add, i, 1) for i in range(200)]
        wait_until(lambda: all(finished(job) for job in jobs[-4:]) and all(map(finished, jobs)), 40, "200 jobs")
        assert [job.return_value() for job in jobs] == list(range(1, 201))
        assert tls.ours() == ["command", "listen", "web"]
        after = looking.info("stats")["total_connections_received"]
        assert after - before == 1, worker.output()  # the look just now
        assert worker.stop() == 0
    connection.connection_pool.disconnect()


def test_the_own_command_wakes_and_is_stopped(tls: TLSServer, tmp_path: Path) -> None:
    """Wake-ups and control commands that arrive in TLS records are all seen, idle and under load."""
    queue = rq_pooled.Queue("q", connection=tls.server.client())
    with running_worker(tls.url, "q", "--name", "w", log=tmp_path / "log", RQ_POOLED_BLOCK="600") as worker:
        for _ in range(50):  # each wakes an idle worker
            job = queue.enqueue(crash_jobs.nothing)
            wait_until(lambda: finished(job), 10, "a job after a wake-up")  # noqa: B023
        tls.server.client().publish(named("rq:pubsub:w"), '{"command": "shutdown"}')
        assert worker.wait() == 0


def test_a_lost_connection_is_replaced(tls: TLSServer, tmp_path: Path) -> None:
    """After CLIENT KILL of both connections the worker comes back over TLS with two."""
    client = tls.server.client()
    queue = rq_pooled.Queue("q", connection=client)
    with running_worker(tls.url, "q", log=tmp_path / "log") as worker:
        for entry in client.client_list():
            if entry["name"].startswith(named("rq_pooled:")):
                client.client_kill_filter(_id=entry["id"])
        worker.wait_for("the server is back")
        job = queue.enqueue(crash_jobs.nothing)
        wait_until(lambda: finished(job), what="work over the new connections")
        assert tls.ours() == ["command", "listen"]


COMMANDS = (["worker", "--burst", "q"], ["stats"], ["sweep", "--ghosts"])


def test_a_certificate_that_nobody_vouches_for(tls: TLSServer) -> None:
    """Without its CA the server is refused once, with 2 and the parameters that help; so is a name that it has not."""
    url = tls.url.partition("?")[0]
    pool = Pool(Settings(url=url))
    with pytest.raises(
        ServerUnreachable, match=r"verify failed.*tried 1 time\).*Add ssl_ca_certs=PATH .*ssl_cert_reqs=none"
    ):
        Redis(connection_pool=pool).ping()
    for command in COMMANDS:
        line = refusal(run(["-m", "rq_pooled", *command], RQ_POOLED_URL=url))
        assert "certificate verify failed" in line and "ssl_ca_certs=PATH" in line and "ssl_cert_reqs=none" in line
    checked = run(["-m", "rq_pooled", "check", "--away", "ok"], RQ_POOLED_URL=url)
    assert checked.returncode == 3 and "ssl_ca_certs" in checked.stdout
    line = refusal(run(["-m", "rq_pooled", "stats"], RQ_POOLED_URL=tls.url.replace("127.0.0.1", "127.1")))
    assert "the host in URL as the certificate names it" in line


@pytest.mark.parametrize("login", ["", ":secret@"])
def test_plain_and_tls_taken_for_each_other(tls: TLSServer, login: str) -> None:
    """redis:// to a port with TLS, and rediss:// to one without, are named as that, with 2."""
    for url, words in (
        (f"redis://{login}127.0.0.1:{tls.port}/0", "rite rediss:// instead of redis://"),
        (f"rediss://{login}127.0.0.1:{tls.server.port}/0", "rite redis:// instead of rediss://"),
    ):
        for command in COMMANDS[:2]:
            result = run(["-m", "rq_pooled", *command], RQ_POOLED_URL=url, RQ_POOLED_SOCKET_CONNECT_TIMEOUT="0.5")
            line = refusal(result)
            assert words in line and "tried 3 times" not in line


def test_sentinel_over_tls(tls: TLSServer, tmp_path: Path) -> None:
    """rediss+sentinel:// speaks TLS with the sentinel and with the master; sentinel_tls=no with the master only."""
    port = free_port()
    lines = [f'{name} "{value}"' for name, value in tls_options(tls.certificate, port).items()]
    lines.append("tls-replication yes")
    sentinel = Sentinel(tmp_path / "sentinel", "redis", "127.0.0.1", tls.port, 1, "\n".join(lines) + "\n")
    try:
        wait_until(lambda: sentinel.ready(replicas=0), 30, "a sentinel that reaches the master")
        ca = f"ssl_ca_certs={tls.certificate / 'cert.pem'}"
        urls = [
            f"rediss+sentinel://127.0.0.1:{port}/{SERVICE}/0?{ca}",
            f"rediss+sentinel://127.0.0.1:{sentinel.port}/{SERVICE}/0?sentinel_tls=no&{ca}",
        ]
        for url in urls:
            pool = Pool(Settings(url=url))
            with Redis(connection_pool=pool) as client:
                assert client.ping() and tls.ours() == ["web"]
                assert pool.address == url.partition("?")[0]
            pool.disconnect()
        with pytest.raises((RedisError, OSError)):  # the master's CA is the sentinel's as well
            Redis(connection_pool=Pool(Settings(url=urls[0].partition("?")[0], reconnect_base=0.01))).ping()
        job = rq_pooled.Queue("q", connection=tls.server.client()).enqueue(crash_jobs.nothing)
        result = run(["-m", "rq_pooled", "worker", "--burst", "q"], RQ_POOLED_URL=urls[0])
        assert result.returncode == 0 and finished(job), result.stderr
    finally:
        sentinel.end()
