"""A claim becomes a job, and what RQ's handlers have written of it becomes the outcome that the parent records."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from redis.exceptions import ResponseError
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.serializers import DefaultSerializer

from .. import rq_api
from ..foreign import error_words, is_text
from ..process.channel import ChildChannel, encode_plain
from ..signing.policy import current
from ..signing.serializer import Sealed
from ..store import once, rate_limits
from ..store.claim import STALLS, Claim
from ..wire import Packed, Word, pack, pack_runs, raw
from .kinds import Kind, Kinds
from .large import LARGE, LargeValues, Refused, set_apart, without_known
from .screening import UNREADABLE, UNSCREENED, Screened, Unscreened
from .success import snapshot
from .tape import Tape
from .time_limits import HANDLER_TIME
from .worker import HorseMixin

#: No commands, packed.
_NOTHING = (0, 0, b"")


class Outcomes:
    """Makes the outcomes of one horse, one after the other.

    Args:
        worker: runs the jobs, with the recorder as its connection.
        channel: to the parent.
        large: reads and writes large values.
    """

    def __init__(self, worker: HorseMixin, channel: ChildChannel, large: LargeValues) -> None:
        self._worker = worker
        self._recorder = worker.connection
        self._channel = channel
        self._large = large
        # RQ asks a serializer whether it is one each time it is given one, which is slow; None is its default.
        used: Any = worker.serializer
        is_default = (used.inner if isinstance(used, Sealed) else used) is DefaultSerializer
        self._serializer = None if is_default else used
        # These are by key. They are not the worker's own queues: RQ gives a popped job a queue with the worker's
        # serializer.
        self._queues: dict[str, Queue] = {}
        self._kinds = Kinds()
        #: The execution whose job turned out to be of another kind.
        self._of_other_kind = ""
        self._webhooks: list[tuple[Job, str, str | None]] = []
        #: What leaves together with the message that this process is free again.
        self.outbox: list[tuple[Any, ...]] = []
        #: The same, of a plain success.
        self._plain: Packed | None = None
        #: The last one that was begun, whole, and what was found out about it before it was loaded.
        self.claim: Claim
        self.screened: Screened | Unscreened
        #: When the last one was delivered, by the clock of ``time.perf_counter``.
        self.delivered_at = 0.0
        self._policy = current()

    def begin(self, claim: Claim, waited: bool = False) -> tuple[Job, Queue, Tape]:
        """Rebuild the job of a claim, and give the worker a tape for what its handlers write.

        Args:
            claim: of the job.
            waited: the job has waited here since it was claimed, and begins now.

        Raises:
            Refused, Gone: the job cannot be rebuilt, or its large fields cannot be read; it was deleted.
        """
        self._worker.name = claim.worker_name
        if not (claim.job_id.isascii() or is_text(raw(claim.job_id))):
            raise Refused(f"{UNREADABLE}: the job's id is no text")
        if claim.left_out:
            large = self._large.read(Job.key_for(claim.job_id), claim.left_out)
            claim = claim._replace(raw={**claim.raw, **large}, left_out=())
        queue = self.queue(claim.queue_key)
        job = self._rebuilt(claim, queue)
        tape = self.hold(claim, job, snapshot(job), time.time() if waited else claim.created_at)[1]
        return job, queue, tape

    def hold(self, claim: Claim, job: Job, before: Mapping[str, Any], begun: float) -> tuple[Queue, Tape]:
        """Give the worker a tape for what its handlers write of a job, of which this was the snapshot."""
        worker, recorder = self._worker, self._recorder
        self.claim = claim
        execution = self.hold_execution(claim, begun)
        worker.tape = Tape(claim.job_id, claim.execution_id, execution.serialize, self._read)
        screened = self.screened
        worker.raw, worker.raw_key, worker.before = claim.raw, job.key.encode(), before
        recorder.running, recorder.outcome = job.key, worker.tape
        self._webhooks.clear()
        if screened.refusal is not None:
            worker.log.error("Worker %s: job %s is not loaded: %s", worker.name, job.id, screened.refusal)
        if job.webhooks:
            # They are sent once the outcome is recorded. The method is set on the object, since job classes are the
            # user's.
            job.send_webhooks = lambda status, *, exc_string=None: self._webhooks.append(  # type: ignore[method-assign]
                (job, status, exc_string)
            )
        return self.queue(claim.queue_key), worker.tape

    def hold_execution(self, claim: Claim, begun: float) -> Execution:
        """Give the worker the execution of a claim, which code up the stack of a job may look at; return it."""
        execution = Execution(claim.execution_id, claim.job_id, self._recorder, worker_name=claim.worker_name)
        execution.created_at = execution.last_heartbeat = datetime.fromtimestamp(begun, tz=timezone.utc)
        rq_api.hold(self._worker, execution)
        return execution

    def kind_of(self, claim: Claim) -> Kind | None:
        """Return the kind that the job of a claim may have; None where RQ is to read it."""
        if self._worker.job_class is not Job or self._policy.checks or claim.left_out:
            return None
        return self._kinds.of(claim.queue_key)

    def rebuilt_as(self, kind: Kind, claim: Claim) -> Job | None:
        """Return the job of a claim, which is about to run without a tape; None if it is not of this kind."""
        job = kind.rebuild(claim.job_id, claim.raw)
        if job is None:
            self._of_other_kind = claim.execution_id
        else:
            self.claim, self.screened = claim, UNSCREENED
            self._worker.name = claim.worker_name
            self._recorder.running, self._recorder.outcome = job.key, None
        return job

    def deliver_packed(self, commands: Packed) -> None:
        """Put the outcome of a plain success into the outbox."""
        self.delivered_at = time.perf_counter()
        self._plain = commands

    def messages(self, kind: str, flag: bool, seconds: float | None = None, streams: bool = False) -> list[Any]:
        """Return what is in the outbox, and a last message; afterwards it is empty.

        Args:
            kind, flag, seconds: the last message.
            streams: the job has used Redis, so that the parent has to look at its streams: no short form says so.
        """
        messages, self.outbox = self.outbox, []
        plain, self._plain = self._plain, None
        if plain is not None:
            if seconds is not None and not (flag or messages or streams):
                return [encode_plain(kind == "free", seconds, *plain)]
            messages.insert(0, ("outcome", "finished", _NOTHING, (1, *plain), _NOTHING, False))
        messages.append((kind, flag) if seconds is None else (kind, flag, seconds))
        return messages

    def _rebuilt(self, claim: Claim, queue: Queue) -> Job:
        worker, fields = self._worker, claim.raw
        if worker.job_class is Job and not self._policy.checks and claim.execution_id != self._of_other_kind:
            job = self._kinds.rebuild(claim.queue_key, claim.job_id, fields)
            if job is not None:
                self.screened = UNSCREENED
                return job
        try:
            job = worker.job_class(claim.job_id, connection=self._recorder, serializer=self._serializer)
            self.screened = Screened(self._policy, job, queue, fields)
        except Exception as error:
            # RQ takes no id with other characters, and a job class of the user's may raise anything.
            raise Refused(f"{UNREADABLE}: the job cannot be rebuilt: {error_words(error)}") from error
        if not self._policy.checks:
            self._kinds.note(claim.queue_key, job, fields)
        return job

    def queue(self, key: str) -> Queue:
        """Return the queue that a job is given, as RQ gives it one."""
        queue = self._queues.get(key)
        if queue is None:
            worker = self._worker
            queue = self._queues[key] = worker.queue_class.from_queue_key(
                key,
                connection=self._recorder,
                job_class=worker.job_class,
                serializer=worker.serializer,
                death_penalty_class=worker.death_penalty_class,
            )
        return queue

    def deliver(self, tape: Tape, commands: tuple[Any, ...] | None = None) -> None:
        """Put the outcome into the outbox, packed for the server; with ``commands``, the tape's own are of dependents.

        It is not recorded yet; only webhooks wait for that.

        Raises:
            Refused: its large values cannot be put aside.
        """
        # The job has come to an end, so its stalls count no more.
        if STALLS in self._worker.raw:
            tape.write([b"HDEL", self._worker.raw_key, STALLS])
        if commands is None:
            tape.commands += once.closing_commands(self._worker.raw, tape.job_id, tape.succeeded)
            tape.commands += rate_limits.closing_commands(self._worker.raw, tape.job_id, tape.status)
            tape.commands += self.screened.counted(self._worker.key)
        guards = _NOTHING
        if tape.guards:
            words: list[Word] = []
            for digest, read in tape.guards:
                words += [digest, len(read), *read]
            guards = (len(tape.guards), *pack(words))
        tape.delivered = True
        self.delivered_at = time.perf_counter()
        mine = self._packed(tape.commands)
        parts = (guards, mine, _NOTHING) if commands is None else (guards, commands, mine)
        self.outbox.append(("outcome", tape.status.decode(), *parts, bool(self._webhooks)))
        if self._webhooks:
            self._channel.send(*self.outbox)
            self.outbox.clear()
            webhooks, self._webhooks = self._webhooks, []
            if self._channel.receive() == ("committed", True):
                self._recorder.outcome = None
                for job, status, exc_string in webhooks:
                    type(job).send_webhooks(job, status, exc_string=exc_string)

    def _packed(self, commands: Sequence[Sequence[Word]]) -> tuple[int, int, bytes]:
        """Return commands as they travel; large values in them go ahead, over a connection that has nothing else."""
        packed = pack_runs(commands)
        if len(packed.data) > LARGE and self._large.known:
            commands = without_known(commands, self._large.known)
            packed = pack_runs(commands)
        if len(packed.data) > LARGE:
            commands, values = set_apart(commands)
            packed = pack_runs(commands)
            if values:
                self._worker.announce(-1)
                self._large.put_aside(self.claim, values)
        return (len(commands), *packed)

    def _read(self, commands: Sequence[Sequence[bytes]]) -> list[tuple[bytes, Any]]:
        """Have the parent answer reads on which the outcome depends."""
        _kind, replies = self._channel.ask(("read", [list(words) for words in commands]))
        if isinstance(replies, str):
            raise ResponseError(f"the server refused a read on which an outcome depends: {replies}")
        answers = []
        for words, (digest, reply, *left_out) in zip(commands, replies):
            if left_out:
                self._worker.announce(-1)
                reply = self._large.complete(reply, words[1], *left_out)
                self._worker.announce(HANDLER_TIME)
            answers.append((digest, reply))
        return answers
