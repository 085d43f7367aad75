"""What can be done to a server and its workers: each kind of fault of plan.py, and how it ends."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable

import psutil
from redis.exceptions import RedisError

from .plan import Fault
from .stage import Deed, Member, Stage

#: After how many seconds to do what.
Later = tuple[float, Callable[[], None]]


class BreakableStage(Stage):
    """A stage on which everything can be broken, and mends."""

    def do(self, fault: Fault) -> Later | None:
        """Do it; return after how many seconds to do what, where it has an end."""
        return getattr(self, "_" + fault.kind.replace(" ", "_"))(fault)

    def _note(self, kind: str, pid: int = 0, length: float = 0.0) -> Deed:
        now = time.time()
        deed = Deed(now, now + length, kind, pid)
        self.deeds.append(deed)
        return deed

    def _ended(self, deed: Deed) -> None:
        deed.until = time.time()

    def _pick(self, fault: Fault) -> Member | None:
        able = [member for member in self.members if member.alive and not member.leaving and not member.frozen]
        return able[int(fault.pick * len(able))] if able else None

    def _replacement(self, fault: Fault) -> Later:
        return fault.length, lambda: void(self.start_worker())

    def _kill_worker(self, fault: Fault) -> Later | None:
        member = self._pick(fault)
        if member is None:
            return None
        member.leaving = True
        self._note("kill worker", member.process.pid)
        member.process.kill()
        return self._replacement(fault)

    def _kill_horse(self, fault: Fault) -> None:
        with contextlib.suppress(psutil.Error):
            horses = [
                child
                for member in self.members
                if member.alive and not member.leaving
                for child in psutil.Process(member.process.pid).children()
            ]
            if horses:
                horse = horses[int(fault.pick * len(horses))]
                self._note("kill horse", horse.pid)
                horse.kill()

    def _freeze_worker(self, fault: Fault) -> Later | None:
        member = self._pick(fault)
        if member is None:
            return None
        member.frozen = True
        deed = self._note("freeze worker", member.process.pid, fault.length)
        member.process.process.send_signal(signal.SIGSTOP)

        def thaw() -> None:
            member.process.process.send_signal(signal.SIGCONT)
            member.frozen = False
            self._ended(deed)

        return fault.length, thaw

    def _replace_worker(self, fault: Fault) -> Later | None:
        member = self._pick(fault)
        if member is None:
            return None
        member.leaving = True
        self._note("stop worker", member.process.pid)
        member.process.process.send_signal(signal.SIGTERM)
        return self._replacement(fault)

    def _freeze_server(self, fault: Fault) -> Later:
        deed = self._note("freeze server", 0, fault.length)
        self.server.pause()
        return fault.length, lambda: (self.server.resume(), self._ended(deed))[1]

    def _crash_server(self, fault: Fault) -> Later:
        deed = self._note("crash server", 0, fault.length)
        self.server.kill()
        return fault.length, lambda: (self.server.start(), self._ended(deed))[1]

    def _restart_server(self, fault: Fault) -> Later:
        deed = self._note("restart server", 0, fault.length)
        self.server.stop()
        return fault.length, lambda: (self.server.start(), self._ended(deed))[1]

    def _demote_server(self, fault: Fault) -> Later:
        """Make it a replica, as during a failover: it answers READONLY."""
        deed = self._note("demote server", 0, fault.length)
        self._ask(lambda: self.admin.replicaof("127.0.0.1", 1))

        def promote() -> None:
            self._ask(lambda: self.admin.replicaof("NO", "ONE"))
            self._ended(deed)

        return fault.length, promote

    def _fill_memory(self, fault: Fault) -> Later:
        deed = self._note("fill memory", 0, fault.length)
        self._ask(lambda: self.admin.config_set("maxmemory", "1"))

        def free() -> None:
            self._ask(lambda: self.admin.config_set("maxmemory", "0"))
            self._ended(deed)

        return fault.length, free

    def _cut_connections(self, fault: Fault) -> None:
        """Cut those of one worker, or everybody's."""

        def cut() -> None:
            member = self._pick(fault) if fault.pick > 0.5 else None
            pid = f":{member.process.pid}:" if member else ""
            self._note("cut connections", member.process.pid if member else 0)
            for entry in self.admin.client_list():
                if pid in entry["name"] and entry["name"] != "chaos-admin" and not entry["name"].endswith(":harness"):
                    self.admin.client_kill_filter(_id=entry["id"])

        self._ask(cut)

    def _flush_scripts(self, _fault: Fault) -> None:
        self._note("flush scripts")
        self._ask(lambda: self.admin.script_flush())

    def _ask(self, call: Callable[[], object]) -> None:
        """Ask the server, which answers; one that has just come back may have closed this connection."""
        for attempt in range(3):
            try:
                call()
                return
            except (RedisError, OSError):
                if attempt == 2:
                    raise
                time.sleep(0.1)


def void(_value: object) -> None:
    """Return nothing."""
