"""What RQ's handlers have written of one job, and what they relied on: the outcome, before it is recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from rq.job import Job
from rq.results import Result

from ..store.keys import execution_key, executions_key
from .effects import Effects

#: Answers reads on behalf of a recording: takes encoded commands, returns (digest, raw reply) for each.
Reader = Callable[[Sequence[Sequence[bytes]]], list[tuple[bytes, Any]]]

#: Writes to its own hash of a job whose outcome is decided: they join it, since it would write over them.
_JOINING = frozenset(b"HSET HMSET HDEL".split())
#: Reads that are asked for in one step.
_MAX_READS = 200
#: Most words of one recorded command: Lua cannot unpack more than some 8000 values at once.
_MAX_WORDS = 4000
_SPLITTABLE = frozenset((b"SREM", b"SADD", b"ZREM", b"DEL", b"UNLINK"))


class Tape:
    """What one execution's handlers wrote, and what they relied on.

    Args:
        job_id, execution_id: the claim.
        execution: gives the fields of the execution's hash, as the claim script wrote them.
        read: answers all other reads.
    """

    def __init__(
        self,
        job_id: str,
        execution_id: str,
        execution: Callable[[], dict[str, Any]],
        read: Reader,
    ) -> None:
        #: The job succeeded; its status does not tell, for one that repeats is scheduled then.
        self.succeeded = False
        #: A handler of RQ's has returned: what the tape holds is a whole outcome.
        self.complete = False
        self.commands: list[list[Any]] = []
        self.guards: list[tuple[bytes, list[bytes]]] = []
        self.job_id = job_id
        self._read = read
        self._job_key = Job.key_for(job_id).encode()
        self._dependents_key = Job.dependents_key_for(job_id).encode()
        self.status = b"started"
        self._execution_id = execution_id
        self._execution = execution
        #: Guard only what RQ itself watches: the dependents, and the status of other jobs.
        self.tolerant = False
        #: It has been handed to the parent: nothing can be added any more.
        self.delivered = False
        #: What the job is read by.
        self._own_keys = (self._job_key, Result.get_key(job_id).encode())
        #: The command of a plain success, and what returns those that it stands for.
        self._plain: tuple[list[Any], Callable[[], list[list[bytes]]]] = ([], list)
        #: The effects of the commands, and of how many.
        self._effects, self._followed = Effects(), 0
        #: Replies to reads that were asked for together: (what guards the commit, its digest, the reply).
        self._ahead: dict[tuple[bytes, ...], tuple[list[bytes], bytes, Any]] = {}

    @cached_property
    def _known(self) -> dict[tuple[bytes, ...], Any]:
        """The replies to reads that need not be sent; made when there is a first read, since most jobs need none."""
        job_id, execution_id = self.job_id, self._execution_id
        flat = [part.encode() for field in self._execution().items() for part in map(str, field)]
        return {
            (b"ZRANGE", executions_key(job_id).encode(), b"0", b"-1"): [execution_id.encode()],
            (b"HGETALL", execution_key(job_id, execution_id).encode()): flat,
            # Dependents are enqueued in a step of their own, see expect_dependents: here there are none, and the commit
            # looks whether that is true.
            (b"SMEMBERS", self._dependents_key): [],
        }

    def answer(self, words: list[bytes]) -> Any:
        """Return the raw reply to a read."""
        command = tuple(words)
        if command == (b"HGET", self._job_key, b"status"):
            return self.status
        if command in self._known:
            none = (b"0", [b"EXISTS", self._dependents_key])
            if words[1] == self._dependents_key and none not in self.guards:
                self.guards.append(none)
            return self._known[command]
        if command not in self._ahead:
            self._ask([words])
        guard, digest, reply = self._ahead.pop(command)
        if words[0] == b"TYPE":
            # No guard, since a queue that empties has none; once for all dependents of a queue.
            self._known[command] = reply
        elif words[0] != b"TIME" and not (self.tolerant and not _is_watched(guard)):
            self.guards.append((digest, guard))
        return reply

    def foresee(self, reads: Sequence[list[bytes]]) -> None:
        """Ask for all of these reads that are not known in few steps; ``answer`` then gives the replies."""
        known = (b"HGET", self._job_key, b"status")
        unknown = [words for words in reads if tuple(words) not in self._known and tuple(words) != known]
        for start in range(0, len(unknown), _MAX_READS):
            self._ask(unknown[start : start + _MAX_READS])

    def _ask(self, reads: Sequence[list[bytes]]) -> None:
        """Ask the server, and note what guards the commit: the read itself, but of a whole job its status.

        RQ reads the dependents' hashes and does not watch them: who writes to their meta all the time must not keep
        them from being enqueued. That one was cancelled or deleted meanwhile does count.
        """
        statuses = [[b"HGET", words[1], b"status"] for words in reads if _is_job(words)]
        answers = iter(self._read([*reads, *statuses]))
        replies = [next(answers) for _ in reads]
        guards = zip(statuses, answers)
        for words, (digest, reply) in zip(reads, replies):
            guard = words
            if _is_job(words):
                guard, (digest, _status) = next(guards)
            self._ahead[tuple(words)] = (guard, digest, reply)

    def read(self, words: list[bytes], ask: Callable[[], Any]) -> Any:
        """Return the reply to a read as redis-py returns it, by what is on the tape and what ``ask`` gives."""
        plain, written = self._plain
        for command in self.commands[self._followed :]:
            for done in written() if command is plain else [command]:
                self._effects.write(done)
        self._followed = len(self.commands)
        return self._effects.read(words, ask)

    @property
    def decided(self) -> bool:
        """Tell whether it holds an outcome."""
        return bool(self.commands)

    def is_own(self, words: Sequence[bytes]) -> bool:
        """Tell whether a command is about the job's hash or its results."""
        return any(key in words[1:] for key in self._own_keys)

    def joins(self, words: Sequence[bytes]) -> bool:
        """Tell whether a write is to become part of the outcome that is decided."""
        return not self.delivered and words[0] in _JOINING and words[1] == self._job_key

    def plain(self, command: list[Any], written: Callable[[], list[list[bytes]]] = list) -> None:
        """Take the command of a success that knows of no dependents; its words need no encoding yet.

        Args:
            written: returns the commands that it stands for.
        """
        self._plain = (command, written)
        self._effects, self._followed = Effects(), 0
        # The script that records it looks for dependents itself.
        self.guards = []
        self.commands = [command]
        self.status = b"finished"
        self.succeeded = True

    def ask_for_dependents(self) -> None:
        """From here on ask the server for the dependents, and let what it says guard the commit."""
        self._known.pop((b"SMEMBERS", self._dependents_key), None)

    def expect_dependents(self) -> None:
        """Begin anew, and ask for the dependents."""
        self.ask_for_dependents()
        self.guards, self.commands = [], []
        self._effects, self._followed = Effects(), 0

    def know_dependents(self) -> None:
        """Guard the commit where nothing has: the key of the dependents is no set, and the script looks no more."""
        if not self.guards:
            self.guards.append((b"1", [b"EXISTS", self._dependents_key]))

    def write_first(self, words: list[bytes]) -> None:
        """Record a write that is done before all others."""
        self.commands.insert(0, words)
        self._effects, self._followed = Effects(), 0

    def write(self, words: list[bytes]) -> None:
        """Record a write."""
        if words[1:2] == [self._job_key] and words[0] in (b"HSET", b"HMSET") and b"status" in words[2::2]:
            self.status = words[words.index(b"status", 2) + 1]
        if len(words) > _MAX_WORDS and words[0] in _SPLITTABLE:
            head = 1 if words[0] in (b"DEL", b"UNLINK") else 2
            for start in range(head, len(words), _MAX_WORDS):
                self.commands.append(words[:head] + words[start : start + _MAX_WORDS])
        else:
            self.commands.append(words)


def _is_job(words: Sequence[bytes]) -> bool:
    return words[0] == b"HGETALL" and words[1].startswith(Job.redis_job_namespace_prefix.encode())


def _is_watched(words: Sequence[bytes]) -> bool:
    return words[0] == b"SMEMBERS" or (words[0] == b"HGET" and words[2:] == [b"status"])
