"""The server goes away and comes back in every way that it does in production; see also test_failover.py."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import crash_jobs
import jobs
import psutil
import pytest
from keys import named
from proxy import CutProxy
from rq import Queue
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.job import Job, JobStatus
from support import WorkerProcess, running_worker, started, wait_until

from rq_pooled.embedded import EmbeddedServer

StartServer = Callable[..., EmbeddedServer]
STOP = '{"command": "stop-job", "job_id": "%s"}'
DURABLE = {"appendonly": "yes", "appendfsync": "always"}


def all_finished(enqueued: list[Job]) -> bool:
    """Tell whether all jobs have finished."""
    return all(job.get_status() == JobStatus.FINISHED for job in enqueued)


def test_a_frozen_server_is_noticed_and_loses_nothing(start_server: StartServer, tmp_path: Path) -> None:
    """SIGSTOP of the server, the connection stays open and silent: found by the read deadline; outcomes wait."""
    server = start_server(DURABLE)
    redis, gate = server.client(), tmp_path / "gate"
    queue = Queue(connection=redis)
    quick = {"RQ_POOLED_SOCKET_TIMEOUT": "1", "RQ_POOLED_HEARTBEAT_INTERVAL": "1", "RQ_POOLED_HEARTBEAT_TTL": "30"}
    with running_worker(server.url, log=tmp_path / "log", concurrency=3, **quick) as worker:
        held = [queue.enqueue(crash_jobs.wait_for_file, str(gate)) for _ in range(3)]
        started(tmp_path, 3)
        server.pause()
        gate.touch()
        worker.wait_for("lost the server (no reply within 1 s)")
        server.resume()
        worker.wait_for("the server is back")
        wait_until(lambda: all_finished(held))
        assert [len(job.results()) for job in held] == [1, 1, 1]
        assert len(list(tmp_path.glob("gate.*.pid"))) == 3


def test_a_silent_listening_connection_is_found(start_server: StartServer, tmp_path: Path) -> None:
    """A dead peer while the worker sleeps, nothing to read and no error, is found within BLOCK and a read deadline."""
    server = start_server()
    proxy = CutProxy(server.port)
    try:
        quick = {"RQ_POOLED_SOCKET_TIMEOUT": "1", "RQ_POOLED_BLOCK": "1"}
        with running_worker(proxy.url, log=tmp_path / "log", **quick) as worker:
            proxy.delay_on(b"PING")  # the answer to the probe of the listening connection never comes
            worker.wait_for("lost the server (no answer to PING)")
            worker.wait_for("the server is back")
            job = Queue(connection=server.client()).enqueue(jobs.add, 1, 2)
            wait_until(lambda: job.get_status() == JobStatus.FINISHED)
    finally:
        proxy.close()


def test_a_server_that_lost_its_last_second_is_told_again(start_server: StartServer, tmp_path: Path) -> None:
    """A server that comes back without what it acknowledged last is sent those outcomes again; nothing runs twice."""
    server = start_server({"appendonly": "no", "save": ""})
    redis, gate = server.client(), tmp_path / "gate"
    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "log", concurrency=2) as worker:
        held = [queue.enqueue(crash_jobs.wait_for_file, str(gate)) for _ in range(2)]
        started(tmp_path, 2)
        redis.save()  # what the disk holds when the server dies
        gate.touch()
        wait_until(lambda: all_finished(held))
        server.kill()
        worker.wait_for("lost the server")
        server.start()
        worker.wait_for("had lost 2 outcomes that it acknowledged; they are recorded again")
        wait_until(lambda: all_finished(held))
        assert [len(job.results()) for job in held] == [1, 1]
        assert redis.zcard(named("rq:wip:default")) == 0
        assert len(list(tmp_path.glob("gate.*.pid"))) == 2


def test_outcomes_sent_again_change_nothing_that_stands(start_server: StartServer, tmp_path: Path) -> None:
    """The last seconds' outcomes are sent again after each outage, and a server that has them keeps what it has."""
    server = start_server(DURABLE)
    redis = server.client()
    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "log", concurrency=2) as worker:
        done = [queue.enqueue(jobs.add, 1, i) for i in range(20)]
        wait_until(lambda: all_finished(done))
        before = {job.id: redis.hgetall(job.key) for job in done}
        server.kill()
        server.start()
        worker.wait_for("the server is back")
        last = queue.enqueue(jobs.nothing)
        wait_until(lambda: last.get_status() == JobStatus.FINISHED)
        assert {job.id: redis.hgetall(job.key) for job in done} == before
        assert [len(job.results()) for job in done] == [1] * 20
        for words in ("recorded again", "dropped", "handed on"):
            assert words not in worker.output()


def test_a_claim_whose_reply_was_lost_goes_back_and_is_no_stall(start_server: StartServer, tmp_path: Path) -> None:
    """The server popped a job and its answer never came: the job goes back at once, and that is not held against it."""
    server = start_server()
    redis, proxy = server.client(), CutProxy(server.port)
    try:
        with running_worker(proxy.url, log=tmp_path / "log") as worker:
            queue = Queue(connection=redis)
            wait_until(lambda: "client tracking" in worker.output() or "polling" in worker.output())
            proxy.cut_on(named(b"rq_pooled:claims:"))
            job = queue.enqueue(jobs.add, 1, 2)
            assert proxy.done.wait(20)
            wait_until(lambda: job.get_status() == JobStatus.FINISHED)
            assert len(job.results()) == 1
            assert "rq_pooled_stalls" not in {key.decode() for key in redis.hgetall(job.key)}
    finally:
        proxy.close()


def test_a_commit_whose_reply_was_lost_is_no_lost_claim(start_server: StartServer, tmp_path: Path) -> None:
    """Outcomes that were recorded, and whose answer never came, are sent again: no job runs twice, none counts
    twice.
    """
    server = start_server()
    redis, gate, proxy = server.client(), tmp_path / "gate", CutProxy(server.port)
    try:
        with running_worker(proxy.url, log=tmp_path / "log", concurrency=2) as worker:
            queue = Queue(connection=redis)
            held = [queue.enqueue(crash_jobs.wait_for_file, str(gate)) for _ in range(2)]
            started(tmp_path, 2)
            proxy.cut_on(b"PLAIN_SUCCESS")
            gate.touch()
            assert proxy.done.wait(20)
            worker.wait_for("the server is back")
            last = queue.enqueue(jobs.nothing)
            wait_until(lambda: all_finished([*held, last]))
            assert [len(job.results()) for job in held] == [1, 1]
            assert len(list(tmp_path.glob("gate.*.pid"))) == 2
            counts = [int(redis.hget(key, "successful_job_count") or 0) for key in redis.smembers(named("rq:workers"))]
            assert sum(counts) == 3
            for words in ("its claim is gone", "putting back", "had lost"):
                assert words not in worker.output()
    finally:
        proxy.close()


def test_a_claim_that_is_answered_after_a_stop_goes_back(start_server: StartServer, tmp_path: Path) -> None:
    """A job that the server hands out while a shutdown begins is not begun: it is at the front of its queue, no
    stall.
    """
    server = start_server()
    redis, proxy = server.client(), CutProxy(server.port)
    try:
        with running_worker(proxy.url, log=tmp_path / "log") as worker:
            wait_until(lambda: redis.info("stats")["tracking_total_items"] == 2, what="the worker to sleep")
            queue = Queue(connection=redis)
            proxy.delay_on(named(b"rq_pooled:claims:"))
            job, behind = queue.enqueue_many(
                [
                    Queue.prepare_data(crash_jobs.wait_for_file, (str(tmp_path / "gate"),)),
                    Queue.prepare_data(jobs.nothing),
                ]
            )
            wait_until(lambda: job.get_status() == JobStatus.STARTED)
            worker.process.send_signal(signal.SIGTERM)
            worker.wait_for("arm shut down")
            proxy.deliver()
            assert worker.wait() == 0
        assert queue.job_ids == [job.id, behind.id] and not list(tmp_path.glob("gate.*.pid"))
        assert (job.get_status(), redis.hexists(job.key, "rq_pooled_stalls")) == (JobStatus.QUEUED, False)
        assert not redis.zcard(named("rq:wip:default"))
    finally:
        proxy.close()


def test_a_stop_while_a_commit_is_under_way_waits_for_what_becomes_of_it(
    start_server: StartServer, tmp_path: Path
) -> None:
    """A worker that is stopped before its last outcome is answered still enqueues the dependents of that job."""
    server = start_server()
    redis, gate, proxy = server.client(), tmp_path / "gate", CutProxy(server.port)
    try:
        queue = Queue(connection=redis)
        first = queue.enqueue(crash_jobs.wait_for_file, str(gate))
        second = queue.enqueue(jobs.nothing, depends_on=first)
        with running_worker(proxy.url, "default", log=tmp_path / "log") as worker:
            started(tmp_path, 1)
            proxy.delay_on(b"PLAIN_SUCCESS")
            gate.touch()
            assert proxy.done.wait(20)
            worker.process.send_signal(signal.SIGTERM)
            worker.wait_for("warm shut down requested")
            proxy.deliver()
            assert worker.wait() == 0
        assert (first.get_status(), second.get_status()) == (JobStatus.FINISHED, JobStatus.QUEUED)
        assert queue.job_ids == [second.id]
    finally:
        proxy.close()


def test_max_jobs_counts_what_a_claim_under_way_may_bring(start_server: StartServer, tmp_path: Path) -> None:
    """While a claim is not answered its slots count as jobs: with --max-jobs 2 and three slots no third job is
    claimed.
    """
    server = start_server()
    redis, gate, proxy = server.client(), tmp_path / "gate", CutProxy(server.port)
    try:
        with running_worker(
            proxy.url, "default", "--max-jobs", "2", "--verbose", log=tmp_path / "log", concurrency=3
        ) as worker:
            wait_until(lambda: redis.info("stats")["tracking_total_items"] == 2, what="the worker to sleep")
            queue = Queue(connection=redis)
            proxy.delay_on(named(b"rq_pooled:claims:"))
            data = [Queue.prepare_data(crash_jobs.wait_for_file, (str(gate),)) for _ in range(5)]
            with redis.pipeline() as pipe:  # in one step, so that the first claim finds them all
                held = queue.enqueue_many(data, pipeline=pipe)
                pipe.execute()
            assert proxy.done.wait(20)
            wait_until(lambda: held[1].get_status() == JobStatus.STARTED)
            # Had it sent another claim meanwhile, that would be done before this.
            job = held[1].id
            redis.publish(PUBSUB_CHANNEL_TEMPLATE % redis.hget(held[1].key, "worker_name").decode(), STOP % job)
            worker.wait_for(f"Received command to stop job {job}")
            assert redis.llen(queue.key) == 3
            proxy.deliver()
            wait_until(lambda: held[1].get_status() == JobStatus.STOPPED)  # before it could end by itself
            gate.touch()
            assert worker.wait() == 0
            assert queue.job_ids == [job.id for job in held[2:]]
            assert [job.get_status() for job in held[:2]] == [JobStatus.FINISHED, JobStatus.STOPPED]
    finally:
        proxy.close()


def test_a_server_that_comes_back_empty_is_served(start_server: StartServer, tmp_path: Path) -> None:
    """All data gone: the worker registers again, drops the outcomes of jobs that nobody knows, and takes new ones."""
    server = start_server({"save": ""})
    redis, gate = server.client(), tmp_path / "gate"
    with running_worker(server.url, "--name", "w", "default", log=tmp_path / "log") as worker:
        Queue(connection=redis).enqueue(crash_jobs.wait_for_file, str(gate))
        started(tmp_path, 1)
        server.kill()
        worker.wait_for("lost the server")
        server.start()
        worker.wait_for("the server is back")
        wait_until(lambda: redis.smembers(named("rq:workers")) == {named(b"rq:worker:w")}, what="registering again")
        gate.touch()
        worker.wait_for("its claim is gone")
        job = Queue(connection=redis).enqueue(jobs.add, 1, 2)
        wait_until(lambda: job.get_status() == JobStatus.FINISHED)


def test_under_maxmemory_claims_stop_and_results_are_recorded(start_server: StartServer, tmp_path: Path) -> None:
    """A full server refuses claims, not outcomes, heartbeats or push-backs; one line says so, one that it is over."""
    server = start_server({"maxmemory-policy": "noeviction"})
    redis, gate = server.client(), tmp_path / "gate"
    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "log", concurrency=2) as worker:
        held = queue.enqueue(crash_jobs.wait_for_file, str(gate))
        started(tmp_path, 1)
        with redis.pipeline() as pipeline:  # in one step, so that the worker sees the job only when memory is full
            after = queue.enqueue(jobs.add, 1, 2, pipeline=pipeline)
            pipeline.config_set("maxmemory", 1)
            pipeline.execute()
        worker.wait_for("cannot claim jobs")
        gate.touch()
        wait_until(lambda: held.get_status() == JobStatus.FINISHED, what="an outcome recorded at maxmemory")
        assert after.get_status() == JobStatus.QUEUED
        redis.config_set("maxmemory", 0)
        wait_until(lambda: after.get_status() == JobStatus.FINISHED)
        assert worker.output().count("cannot claim") == worker.output().count("claiming jobs again") == 1


def busy_seconds(worker: WorkerProcess) -> float:
    """Return the processor time of the parent."""
    times = psutil.Process(worker.pid).cpu_times()
    return times.user + times.system


@pytest.mark.parametrize("change", ["resetkeys ~other:*", "-@all", "-exists"])
def test_rights_withdrawn_cost_few_lines_until_they_are_back(
    start_server: StartServer, tmp_path: Path, change: str
) -> None:
    """A running worker whose user loses a right says so once, asks more and more rarely, and goes on when it is
    back.
    """
    server = start_server()
    redis = server.client()
    grant = ("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all")
    redis.execute_command(*grant)
    url = server.url.replace("//", "//app:pw@")
    with running_worker(url, "default", "--with-scheduler", log=tmp_path / "log") as worker:
        first = Queue(connection=redis).enqueue(jobs.nothing)
        wait_until(lambda: first.get_status() == JobStatus.FINISHED)
        redis.execute_command("ACL", "SETUSER", "app", *change.split())
        before = len(worker.output().splitlines())
        job = Queue(connection=redis).enqueue(jobs.nothing)
        worker.wait_for("cannot claim jobs")
        began = time.monotonic()
        # The claim comes back after 1 and 3 seconds; a promotion may be among these.
        refused = lambda: redis.info("commandstats")["cmdstat_evalsha"]
        wait_until(lambda: refused()["rejected_calls"] + refused()["failed_calls"] >= 3)
        assert time.monotonic() - began > 0.8
        assert len(worker.output().splitlines()) - before < 6, worker.output()
        assert "let its user run all commands" in worker.output()
        redis.execute_command(*grant)
        worker.wait_for("claiming jobs again")
        wait_until(lambda: job.get_status() == JobStatus.FINISHED)


def test_heartbeats_that_are_refused_cost_a_line(start_server: StartServer, tmp_path: Path) -> None:
    """Heartbeats that the server refuses for one reason are one line, not one each."""
    server = start_server()
    redis = server.client()
    redis.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all")
    url, interval = server.url.replace("//", "//app:pw@"), {"RQ_POOLED_HEARTBEAT_INTERVAL": "0.2"}
    with running_worker(url, "default", log=tmp_path / "log", **interval) as worker:
        first = Queue(connection=redis).enqueue(jobs.nothing)  # a worker that never worked would end
        wait_until(lambda: first.get_status() == JobStatus.FINISHED)
        redis.execute_command("ACL", "SETUSER", "app", "-@all")
        refused = lambda: redis.info("commandstats")["cmdstat_evalsha"]["rejected_calls"]
        wait_until(lambda: refused() >= 12, what="a dozen refusals")
        assert worker.output().count("heartbeat refused") == 1, worker.output()


def test_rights_withdrawn_end_a_burst(start_server: StartServer, tmp_path: Path) -> None:
    """A burst cannot wait for an administrator: what runs is finished, and the exit code is 2."""
    server = start_server()
    redis, gate = server.client(), tmp_path / "gate"
    redis.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all")
    queue = Queue(connection=redis)
    held, waiting = queue.enqueue(crash_jobs.wait_for_file, str(gate)), queue.enqueue(jobs.nothing)
    url = server.url.replace("//", "//app:pw@")
    with running_worker(url, "--burst", log=tmp_path / "log") as worker:
        started(tmp_path, 1)
        redis.execute_command("ACL", "SETUSER", "app", "-lpop")
        gate.touch()
        assert worker.wait() == 2
        assert worker.output().count("access control refuses what a worker does") == 1
    assert held.get_status() == JobStatus.FINISHED and waiting.get_status() == JobStatus.QUEUED


def test_a_claim_that_never_works_ends_a_burst(start_server: StartServer, tmp_path: Path) -> None:
    """A queue that cannot be claimed from ends a burst with 75 after GUARD_WAIT; without --burst it is tried again."""
    server = start_server()
    server.client().set(named("rq:queue:default"), "no list")
    options = {"log": tmp_path / "log", "RQ_POOLED_GUARD_WAIT": "0.5"}
    with running_worker(server.url, "--burst", ready=None, **options) as worker:
        assert worker.wait() == 75
        assert "(GUARD_WAIT)" in worker.output()


def test_an_outage_costs_no_processor_and_few_lines(start_server: StartServer, tmp_path: Path) -> None:
    """While the server is away the parent uses under 2 % of a core, and says two or three lines in all."""
    server = start_server(DURABLE)
    with running_worker(server.url, log=tmp_path / "log", concurrency=4) as worker:
        server.kill()
        worker.wait_for("lost the server")
        time.sleep(3)  # the first attempts follow each other quickly
        used, began = busy_seconds(worker), time.monotonic()
        time.sleep(10)
        assert (busy_seconds(worker) - used) / (time.monotonic() - began) < 0.02
        server.start()
        worker.wait_for("the server is back")
        text = worker.output()
        assert len(re.findall("lost the server", text)) == len(re.findall("the server is back", text)) == 1
        between = text[text.index("lost the server") : text.index("the server is back")]
        assert between.count("\n") <= 4, between


def test_full_of_clients_the_worker_waits(start_server: StartServer, tmp_path: Path) -> None:
    """A server that has no connection left when a worker comes back is tried again, and no job is lost."""
    server = start_server({**DURABLE, "maxclients": 12})
    redis, gate = server.client(), tmp_path / "gate"
    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "log") as worker:
        held = queue.enqueue(crash_jobs.wait_for_file, str(gate))
        started(tmp_path, 1)
        clients = [server.client() for _ in range(9)]
        for client in clients:
            client.ping()
        redis.client_kill_filter(_type="pubsub", skipme=True)
        worker.wait_for("lost the server")
        more = []
        for _ in range(20):  # whoever comes first takes what is left
            client = server.client()
            try:
                client.ping()
                more.append(client)
            except Exception as error:  # noqa: BLE001 - full, or in the middle of becoming so
                assert "max number of clients" in str(error) or "losed" in str(error) or "reset" in str(error)
        gate.touch()
        for client in clients + more:
            client.close()
        worker.wait_for("the server is back")
        wait_until(lambda: held.get_status() == JobStatus.FINISHED)
        assert len(held.results()) == 1


def test_giving_up_names_the_jobs_that_run_again(start_server: StartServer, tmp_path: Path) -> None:
    """RECONNECT_ATTEMPTS is over while jobs run: exit code 75, and the log names them."""
    server = start_server()
    gate = tmp_path / "gate"
    settings = {"RQ_POOLED_RECONNECT_ATTEMPTS": "2", "RQ_POOLED_RECONNECT_CAP": "0.2"}
    with running_worker(server.url, log=tmp_path / "log", **settings) as worker:
        job = Queue(connection=server.client()).enqueue(crash_jobs.wait_for_file, str(gate))
        started(tmp_path, 1)
        server.kill()
        assert worker.wait(20) == 75
        assert f"jobs that will run again: {job.id}" in worker.output()
        assert "Traceback" not in worker.output()


def test_stopping_while_the_server_is_away_waits_for_it(start_server: StartServer, tmp_path: Path) -> None:
    """SIGTERM during an outage with an outcome in memory: the worker waits for the server, records it, and ends."""
    server = start_server(DURABLE)
    redis, gate = server.client(), tmp_path / "gate"
    with running_worker(server.url, log=tmp_path / "log") as worker:
        job = Queue(connection=redis).enqueue(crash_jobs.wait_for_file, str(gate))
        started(tmp_path, 1)
        server.kill()
        worker.wait_for("lost the server")
        gate.touch()
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("warm shut down requested")
        time.sleep(1)
        assert worker.process.poll() is None, "it would lose the outcome"
        server.start()
        assert worker.wait(20) == 0
        assert job.get_status() == JobStatus.FINISHED


def test_stopping_while_the_server_is_away_has_a_deadline(start_server: StartServer, tmp_path: Path) -> None:
    """SHUTDOWN_TIMEOUT ends the wait for the server: exit code 75, and the log names the jobs that will run again."""
    server = start_server(DURABLE)
    gate = tmp_path / "gate"
    with running_worker(server.url, log=tmp_path / "log", RQ_POOLED_SHUTDOWN_TIMEOUT="1") as worker:
        job = Queue(connection=server.client()).enqueue(crash_jobs.wait_for_file, str(gate))
        started(tmp_path, 1)
        server.kill()
        worker.wait_for("lost the server")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 75
        assert f"jobs that will run again: {job.id}" in worker.output()


def test_a_second_signal_ends_the_wait_too(start_server: StartServer, tmp_path: Path) -> None:
    """Without a deadline the second signal ends a worker whose server is away: 75, with the names."""
    server = start_server(DURABLE)
    gate = tmp_path / "gate"
    with running_worker(server.url, log=tmp_path / "log") as worker:
        job = Queue(connection=server.client()).enqueue(crash_jobs.wait_for_file, str(gate))
        started(tmp_path, 1)
        server.kill()
        worker.wait_for("lost the server")
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("warm shut down requested")
        time.sleep(1.2)  # a second signal within a second is the same one
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 75
        assert f"jobs that will run again: {job.id}" in worker.output()


def test_the_stash_of_outcomes_is_bounded(start_server: StartServer, tmp_path: Path) -> None:
    """During an outage no more outcomes pile up than there are horses: nothing new is claimed, and memory stays
    flat.
    """
    server = start_server(DURABLE)
    redis = server.client()
    queue = Queue(connection=redis)
    gate = tmp_path / "gate"
    with running_worker(server.url, log=tmp_path / "log", concurrency=2) as worker:
        held = [queue.enqueue(crash_jobs.wait_for_file, str(gate)) for _ in range(5)]
        started(tmp_path, 2)
        server.kill()
        worker.wait_for("lost the server")
        gate.touch()
        wait_until(lambda: worker.output().count("Job OK") == 2, what="both have ended")
        time.sleep(1)
        assert worker.output().count("Job OK") == 2 and len(list(tmp_path.glob("gate.*.pid"))) == 2
        server.start()
        wait_until(lambda: all_finished(held))


def test_a_storm_of_cut_connections_and_flushed_scripts(start_server: StartServer, tmp_path: Path) -> None:
    """SCRIPT FLUSH and CLIENT KILL in a storm, while jobs run: all end once."""
    server = start_server()
    client = server.client()
    queue = Queue(connection=client)
    with running_worker(server.url, log=tmp_path / "log", concurrency=3):
        enqueued = []
        for round_ in range(8):
            enqueued += [queue.enqueue(jobs.add, round_, i) for i in range(10)]
            client.script_flush()
            client.client_kill_filter(skipme=True)
        wait_until(lambda: all_finished(enqueued), timeout=40)
        assert [len(job.results()) for job in enqueued] == [1] * 80
