"""Lets the jobs of all horses use Redis through the parent: their commands share one connection to the server.

A horse connects to a Unix socket here instead of to the server; redis-py in it does not notice. Each such connection is
a *stream*. Whole commands of all streams go to the server in one write and the replies are cut apart again. What cannot
be shared (commands that wait, WATCH, subscriptions, anything long) goes over a connection that the stream is lent.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import shutil
import socket
import struct
import tempfile
import time
from collections import deque
from collections.abc import Callable
from glob import glob
from typing import Any

from ..capacity.budget import Lease
from ..capacity.reservation import Ask, Reservation
from ..capacity.stop_flag import Brake
from ..config.settings import Settings
from ..connection.command_table import CommandTable
from ..connection.place import Place
from ..errors import PlatformUnsupported
from ..horse.stream import Door
from ..process.event_loop import Loop, Timer
from .framing import Malformed, cut_command, words_of
from .lending import Lending
from .opener import NO_PLACE, Opener
from .shared import Shared
from .streams import LONG_REQUEST, MOST_UNREAD, Guest, Stream
from .upstream import CHUNK, Dialer

#: Seconds of one turn of the loop that jobs may have; what is left is served in the next one.
TURN = 0.005
#: Seconds for the rest of a transaction to come: redis-py sends it in one go.
_TRANSACTION_TIME = 0.02
#: Seconds for which the shared connection is not read because one horse does not read.
_STUCK_TIME = 1.0
#: Seconds between looks at what has been waiting for too long.
_TICK = 0.25
#: Streams that have not said whose they are, and seconds that they have for it.
_MOST_STRANGERS, _STRANGER_TIME = 100, 5.0
#: Seconds for which a lent connection stays idle while another process waits for a place in the budget, and while the
#: server is fuller than it should be.
_CROWDED_IDLE, _TIGHT_IDLE = 0.1, 1.0
_PREFIX, _BACKLOG = "rq_pooled-", 1024
#: Seconds between looks whether the socket's folder is still there.
_LOOK_AT_FOLDER = 2.0


class Multiplexer:
    """Listens for streams, and serves them in turns.

    Args:
        loop, settings: as the names say.
        warn: logs, as ``Logger.warning``.
        dialer: what its connections to the server are like.
        place: returns where the command connection leads, None while that is not connected.
        ask: sends one command over the command connection; the reply, or None where that is lost, comes back later.
        lease: the worker's place in the budget, None without one.
        brake: whether connections may be opened, and whether idle ones are better closed.
        answered_at: returns when the command connection was last answered.
    """

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        warn: Callable[..., None],
        dialer: Dialer,
        place: Callable[[], Place | None],
        ask: Ask,
        lease: Lease | None,
        brake: Brake,
        answered_at: Callable[[], float],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._warn = warn
        self._place = place
        self._ask = ask
        self._answered_at = answered_at
        self._dialer = dialer
        self._table = CommandTable()
        self._opener = Opener(loop, settings, dialer, place, brake)
        self._shared = Shared(self._opener, self._queue, self._on_shared_open, self._on_answered, self._on_stuck)
        most = max(settings.concurrency, settings.max_connections - 3)
        self._reservation = Reservation(lease, ask)
        self._brake = brake
        self._lending = Lending(
            loop,
            self._opener,
            self._queue,
            most,
            self._reservation,
            self._table.known,
            lambda: brake.engaged,
            self._on_readable,
            self._on_readable,
        )
        self._guests: dict[bytes, Guest] = {}
        self._streams: set[Stream] = set()
        #: Those of them that have not said whose they are.
        self._strangers: set[Stream] = set()
        #: What has something to be read, and what reads it.
        self._ready: deque[tuple[Any, Callable[[Any], None]]] = deque()
        #: Waiting until the shared connection is open; until the server has said what a command is like, by its name.
        self._for_shared: set[Stream] = set()
        self._for_answer: dict[bytes, set[Stream]] = {}
        #: The horse for which the shared connection is not read.
        self._stuck: Guest | None = None
        self._stuck_timer: Timer | None = None
        self._needed_at = self._heard_at = time.monotonic()
        self._folder: str | None = None
        self._listener, self.path = self._listen()
        loop.watch(self._listener, self._accept)
        loop.call_every(_TICK, self._tick)
        loop.call_every(_LOOK_AT_FOLDER, self._look_at_folder)

    # -- who may come --------------------------------------------------------------------------------------------

    def _listen(self) -> tuple[socket.socket, str]:
        """Return a listening socket and its path: in a folder of our own, or an abstract name where none can be
        made.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        _remove_stale_folders()
        try:
            self._folder = tempfile.mkdtemp(prefix=_PREFIX)
            path = os.path.join(self._folder, "jobs.sock")
            _bind(listener, path)
        except OSError as error:
            self._remove_folder()
            listener.close()
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            path = f"\0{_PREFIX}{os.getpid()}-{os.urandom(8).hex()}"
            try:
                listener.bind(path)
                listener.listen(_BACKLOG)
            except OSError:
                listener.close()
                raise PlatformUnsupported(
                    f"no Unix socket for jobs can be made ({error}): let TMPDIR name a folder that can be written to "
                    "and has "
                    "a short path, or set JOBS_SHARE=no"
                ) from None
        listener.setblocking(False)
        return listener, path

    def _look_at_folder(self) -> None:
        """Make the folder again where something that cleans up has removed it: horses know only its path."""
        if self._folder is None or os.path.exists(self.path):
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._folder, 0o700)
            if os.lstat(self._folder).st_uid != os.geteuid():
                raise PermissionError(f"{self._folder} has another owner now")
            os.chmod(self._folder, 0o700)
            _bind(listener, self.path)
        except OSError as error:
            listener.close()
            self._warn("the socket for jobs is gone, and cannot be made again: %s", error)
            return
        self._warn("the socket for jobs, %s, was removed; it is made again: keep what cleans up from it", self.path)
        self._loop.unwatch(self._listener)
        self._listener.close()
        self._listener = listener
        self._loop.watch(listener, self._accept)

    def admit(self, describe: Callable[[], str]) -> Guest:
        """Return a guest: who shows its token is it. ``drop`` ends that."""
        guest = Guest(describe)
        self._guests[guest.token] = guest
        return guest

    def door(self, token: bytes) -> Door:
        """Return where the streams of the horse with this token begin."""
        return Door(self.path, token, self._dialer.protocol, self._dialer.db)

    def drop(self, guest: Guest) -> None:
        """Close all that a horse has opened, which has ended, and let nobody in with its token."""
        self._guests.pop(guest.token, None)
        for stream in list(guest.streams):
            stream.close()

    def job_ended(self, guest: Guest) -> None:
        """Close what a job has left in the middle of something: the next one would get replies that are not its own."""
        for stream in list(self._strangers):  # one of them may be its last
            self._serve_one(stream)
        for stream in list(guest.streams):
            stream.exclusive = False
            self._serve_one(stream)  # what the job sent before its last word may not have been looked at
            if not stream.is_clean():
                stream.close()

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                self._warn("no further connection of a job can be taken (%s): raise the limit of open files", error)
                self._loop.unwatch(self._listener)
                self._loop.call_later(1.0, lambda: self._loop.watch(self._listener, self._accept))
            return
        if not _is_own(accepted) or len(self._strangers) >= _MOST_STRANGERS:
            accepted.close()
            return
        accepted.setblocking(False)
        stream = Stream(self._loop, accepted, time.monotonic(), self._on_readable, self._on_flushed, self._on_closed)
        self._streams.add(stream)
        self._strangers.add(stream)
        # What it has said already is served in this turn.
        self._on_readable(stream)

    def _introduce(self, stream: Stream) -> bool:
        """Find out whose stream it is; return whether that is known now."""
        token, end, rest = stream.data.partition(b"\n")
        if not end:
            if len(token) > 64:
                stream.close()
            return False
        guest = next((guest for own, guest in self._guests.items() if hmac.compare_digest(own, token)), None)
        if guest is None:
            stream.close()
            return False
        self._strangers.discard(stream)
        stream.guest, stream.data = guest, rest
        guest.streams.add(stream)
        return True

    # -- turns ---------------------------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Tell whether something waits for the next turn."""
        return bool(self._ready)

    def turn(self) -> None:
        """Serve the streams and connections that have sent something, each once and for ``TURN`` seconds in all; then
        write.
        """
        if self._ready:
            until = time.monotonic() + TURN
            for _ in range(len(self._ready)):
                source, serve = self._ready.popleft()
                source.queued = False
                serve(source)
                if time.monotonic() > until:
                    break
        self._shared.flush()

    def _queue(self, source: Any, serve: Callable[[Any], None]) -> None:
        """Have ``serve`` called with a stream, or a connection to the server, in this turn or one of the next."""
        if not source.queued:
            source.queued = True
            self._ready.append((source, serve))

    def _on_readable(self, stream: Stream) -> None:
        self._queue(stream, self._serve_one)

    def _serve_one(self, stream: Stream) -> None:
        try:
            self._serve(stream)
        except Exception as error:  # noqa: BLE001 - whatever one job has caused, others go on
            self._warn("a connection of %s is closed: %s: %s", _name(stream), type(error).__name__, error)
            stream.close()

    def _serve(self, stream: Stream) -> None:
        """Read what a stream has sent, and pass it on."""
        if stream.closed:
            return
        data = stream.receive(CHUNK)
        if data == b"":
            stream.close()
            return
        if data is None:
            self._serve_rest(stream)
            return
        if not stream.data and stream.is_plain and self._shared.usable:  # the shorter way of what is most common
            end, name = cut_command(data, 0)
            if end == len(data) and self._table.known.get(name) and end + stream.under_way <= LONG_REQUEST:
                self._shared.add(stream, data, 1, time.monotonic())
                return
        stream.data = stream.data + data if stream.data else data
        if stream.guest is not None or self._introduce(stream):
            self._serve_rest(stream)

    def _serve_rest(self, stream: Stream) -> None:
        """Pass on what was read before; read no more of it for now if it is much."""
        if stream.waits_for is None:
            self._advance(stream)
        # One whose replies are unread may be about to send the last of its commands before it reads: redis-py does so.
        if stream.waits_for is not None and len(stream.data) > (MOST_UNREAD if stream.unread else LONG_REQUEST):
            stream.read_on(False)

    def _advance(self, stream: Stream) -> None:
        """Pass on what a stream has sent, as far as that can be now."""
        until = time.monotonic() + TURN
        try:
            while stream.data and stream.waits_for is None and not stream.closed:
                before = len(stream.data)
                if time.monotonic() > until:  # the rest has to wait for the next turn
                    self._on_readable(stream)
                    break
                if stream.loan is not None:
                    self._lending.pass_on(stream)
                elif stream.exclusive or stream.own_next:
                    self._borrow(stream)
                else:
                    self._share(stream)
                if len(stream.data) == before and not stream.own_next:
                    break
        except Malformed as error:
            self._warn("%s sent what is no command (%s): closing that connection", _name(stream), error)
            stream.close()
        if stream.waits_for is None and not stream.closed:
            stream.read_on(not self._lending.is_clogged(stream))

    def _share(self, stream: Stream) -> None:
        """Send the commands that may be shared, up to the first that may not."""
        data, size, position, count = stream.data, len(stream.data), 0, 0
        known, most, asked = self._table.known, LONG_REQUEST - stream.under_way, None
        while position < size:
            end, name = cut_command(data, position)
            if end < 0:
                stream.own_next = size - position > LONG_REQUEST
                break
            shared = known.get(name)
            if shared is None:
                if not self._table.is_known(name):
                    asked = name
                    break
                shared = self._table.is_shared(name, words_of(data, position, size))
            number = 1
            if not shared and name.upper() == b"MULTI":
                end, number, unknown = self._transaction(data, position)
                if unknown is not None:
                    asked = unknown
                    break
                if end < 0 and size - position <= LONG_REQUEST:
                    self._expect_more(stream)
                    break
                shared = number > 0
            if not shared or end > most:
                stream.own_next = True
                break
            position, count = end, count + number
        if not count:
            if asked is not None:
                self._find_out(stream, asked)
            return
        if not self._shared.usable:
            stream.own_next = False
            stream.wait("the shared connection", time.monotonic())
            self._for_shared.add(stream)
            self._shared.want()
            return
        stream.data = data[position:]
        self._shared.add(stream, data if position == size else data[:position], count, time.monotonic())
        if asked is not None:  # after that: the answer may come at once, and the stream goes on from here
            self._find_out(stream, asked)

    def _transaction(self, data: bytes, start: int) -> tuple[int, int, bytes | None]:
        """Return (end, number of commands, one of which nothing is known) of a transaction.

        The end is -1 if it is not all here; the number is 0 if it cannot be shared.
        """
        end, _ = cut_command(data, start)
        number, size = 1, len(data)
        while end < size:
            position = end
            end, name = cut_command(data, position)
            if end < 0:
                return -1, 0, None
            number += 1
            if name.upper() == b"EXEC":
                # With more words it is an error after which old servers have the transaction still.
                return end, number if data.startswith(b"*1\r\n", position) else 0, None
            if not self._table.is_known(name):
                return end, 0, name
            if not self._table.is_shared(name, words_of(data, position, size)):
                return end, 0, None
        return -1, 0, None

    def _expect_more(self, stream: Stream) -> None:
        """Wait a moment for the rest of a transaction; a program that sends it step by step waits for an answer."""
        seen = len(stream.data)

        def look() -> None:
            if not stream.closed and stream.loan is None and stream.waits_for is None and len(stream.data) == seen:
                stream.own_next = True
                self._advance(stream)

        self._loop.call_later(_TRANSACTION_TIME, look)

    def _borrow(self, stream: Stream) -> None:
        stream.own_next = False
        if stream.pending:  # in order: what it sent before has to be answered first
            stream.own_next = True
            stream.wait("replies", time.monotonic())
        else:
            self._lending.borrow(stream)

    def _find_out(self, stream: Stream, name: bytes) -> None:
        """Ask the server what a command is like, of which nobody has asked before."""
        stream.wait("the server's table of commands", time.monotonic())
        asked = self._for_answer.get(name)
        if asked is not None:
            asked.add(stream)
            return
        self._for_answer[name] = {stream}
        self._ask_about(name)

    def _ask_about(self, name: bytes) -> None:
        self._ask(self._table.question(name), lambda reply: self._learn(name, reply))

    def _learn(self, name: bytes, reply: Any) -> None:
        if reply is None:
            # The server is away, and what is learnt counts as long as this process lives.
            self._loop.call_later(_TICK, lambda: self._ask_about(name))
            return
        self._table.learn(name, reply)
        for stream in self._for_answer.pop(name, ()):
            self._go_on(stream)

    def _go_on(self, stream: Stream) -> None:
        if not stream.closed:
            stream.wait(None, time.monotonic())
            self._on_readable(stream)  # in its turn: others may go on with it

    # -- what comes back -----------------------------------------------------------------------------------------

    def _on_shared_open(self) -> None:
        waiting, self._for_shared = self._for_shared, set()
        for stream in waiting:
            self._go_on(stream)

    def _on_answered(self, stream: Stream) -> None:
        if stream.waits_for == "replies":
            self._go_on(stream)

    def _on_stuck(self, guest: Guest) -> None:
        """Have a horse that does not read given up, unless it begins to within a moment: all others wait for it."""
        self._stuck = guest
        for stream in guest.streams:
            if stream.unread:  # it may be about to send the last of its commands, before it reads
                stream.read_on(True)
        self._stuck_timer = self._loop.call_later(_STUCK_TIME, lambda: self._unstick(guest))

    def _unstick(self, guest: Guest) -> None:
        if guest.unread > MOST_UNREAD and guest.streams:
            self._warn("%s does not read its replies: closing its connection", guest.describe())
            max(guest.streams, key=lambda stream: stream.unread).close()
        if self._stuck is guest:
            self._go_on_reading()

    def _on_flushed(self, stream: Stream) -> None:
        self._look_whether_stuck(stream)
        self._lending.on_flushed(stream)

    def _look_whether_stuck(self, stream: Stream) -> None:
        if self._stuck is stream.guest and self._stuck is not None and self._stuck.unread <= MOST_UNREAD // 2:
            self._go_on_reading()

    def _go_on_reading(self) -> None:
        self._stuck = None
        if self._stuck_timer is not None:
            self._stuck_timer.cancel()
        self._shared.resume()

    def _on_closed(self, stream: Stream) -> None:
        self._streams.discard(stream)
        self._strangers.discard(stream)
        self._for_shared.discard(stream)
        self._lending.on_closed(stream)
        self._look_whether_stuck(stream)

    # -- the server ----------------------------------------------------------------------------------------------

    def on_away(self, reason: str) -> None:
        """Give up all connections to the server, with which the command connection has been lost."""
        self._shared.give_up(reason)
        self._lending.give_up(reason)

    @property
    def places(self) -> int:
        """Return how many places in the budget the worker needs now."""
        return self._reservation.wanted

    def connections(self) -> dict[str, int]:
        """Return how many there are, by role."""
        return {"jobs": int(self._shared.exists), "exclusive": len(self._lending)}

    # -- looking after -------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now, settings = time.monotonic(), self._settings
        late = [
            *self._shared.overdue(now - settings.socket_timeout),
            *self._lending.overdue(now, settings.socket_timeout),
        ]
        for stream in late:
            stream.refuse("TIMEOUT", f"no reply within {settings.socket_timeout:g} s (SOCKET_TIMEOUT)")
        self._refuse_waiting(now)
        for stream in [one for one in self._strangers if now - one.since > _STRANGER_TIME]:
            stream.close()
        if self._shared.heard:
            self._shared.heard, self._heard_at = False, now
        if self._shared.owes:
            self._needed_at = now
            if self._stuck is None:
                self._look_whether_dead()
        elif (
            settings.max_idle and self._shared.usable and now - max(self._needed_at, self._heard_at) > settings.max_idle
        ):
            self._shared.close()
        if self._reservation.crowded:
            self._lending.close_idle(now - _CROWDED_IDLE)
        elif self._brake.tight:
            self._lending.close_idle(now - _TIGHT_IDLE)
        elif settings.max_idle:
            self._lending.close_idle(now - settings.max_idle)

    def _look_whether_dead(self) -> None:
        """Give the shared connection up if the server answers over the other one only: a firewall has forgotten it."""
        silent_since = max(self._shared.waiting_since or 0.0, self._heard_at)
        # An answer that came later than this long after that was to something that was asked later.
        if self._answered_at() - silent_since > self._settings.socket_timeout:
            self._shared.give_up("the server does not answer on it, but on others")

    def _refuse_waiting(self, now: float) -> None:
        timeout = self._settings.pool_timeout
        before = now - timeout
        for stream in self._lending.waited_since(before):
            if len(self._lending) >= self._lending.most:
                stream.refuse(
                    "EXHAUSTED",
                    f"no connection of its own became free for a command that cannot share one within {timeout:g} s "
                    f"(POOL_TIMEOUT): all {self._lending.most} are in use. Held by: "
                    f"{'; '.join(self._lending.holders())}. "
                    "Raise MAX_CONNECTIONS or POOL_TIMEOUT, or end blocking commands, WATCH and subscriptions earlier",
                )
            else:
                self._refuse_unreachable(stream)
        waiting = [*self._for_shared, *(stream for asked in self._for_answer.values() for stream in asked)]
        for stream in [one for one in waiting if one.since < before]:
            self._refuse_unreachable(stream)

    def _refuse_unreachable(self, stream: Stream) -> None:
        kind, hint = "UNREACHABLE", ""
        if self._opener.reason == NO_PLACE:
            lent = f". Lent by this worker: {'; '.join(self._lending.holders())}" if len(self._lending) else ""
            kind, hint = "BUDGET", f"{lent}. Raise BUDGET, or end blocking commands, WATCH and subscriptions earlier"
        stream.refuse(
            kind,
            f"no connection to the server could be opened within {self._settings.pool_timeout:g} s (POOL_TIMEOUT): "
            f"{self._opener.reason or 'it does not answer'}; nothing was sent{hint}",
        )

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close everything."""
        self._loop.unwatch(self._listener)
        self._listener.close()
        for stream in list(self._streams):
            stream.close()
        self._shared.close()
        self._lending.close()
        self._remove_folder()

    def close_in_child(self) -> None:
        """Close forked copies of all descriptors."""
        self._listener.close()
        for stream in self._streams:
            stream.close_in_child()
        self._shared.close_in_child()
        self._lending.close_in_child()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _name(stream: Stream) -> str:
    return stream.guest.describe() if stream.guest is not None else "a process"


def _is_own(accepted: socket.socket) -> bool:
    """Tell whether the other end has our user id, where the system says so; elsewhere the folder keeps others out."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True
    _pid, uid, _gid = struct.unpack("3i", accepted.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    return bool(uid == os.geteuid())


def _bind(listener: socket.socket, path: str) -> None:
    """Listen at a path, which exists only from then on: another worker takes a socket without a listener for a dead
    one's.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + "~")
    listener.bind(path + "~")
    listener.listen(_BACKLOG)
    os.rename(path + "~", path)


def _remove_stale_folders() -> None:
    """Remove what workers have left that were killed: nobody listens there any more."""
    for folder in glob(os.path.join(tempfile.gettempdir(), _PREFIX + "*")):
        with contextlib.suppress(OSError):
            if os.stat(folder).st_uid != os.geteuid():
                continue
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(0.1)
                try:
                    probe.connect(os.path.join(folder, "jobs.sock"))
                except ConnectionRefusedError:
                    shutil.rmtree(folder, ignore_errors=True)
