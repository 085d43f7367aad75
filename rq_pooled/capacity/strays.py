"""Connections to the server that jobs have opened past rq_pooled: Linux lists the sockets of each process in /proc.

Nothing here raises: a system that lists nothing, or not to this user, has no strays.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

#: The server's end of a connection, as the kernel writes it: packed address and port.
Address = tuple[bytes, int]

PROC = Path("/proc")
#: IPv6 addresses that stand for an IPv4 one begin with this.
_MAPPED = bytes(10) + b"\xff\xff"
_LOOPBACK = socket.inet_aton("127.0.0.1")
_ESTABLISHED = 1
_SOCKET = "socket:["
#: Descriptors that are looked at in one step.
_STEP = 100


def peer(descriptor: int) -> Address | None:
    """Return the other end of a connected TCP socket, None for any other descriptor."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            if copy.family not in (socket.AF_INET, socket.AF_INET6):
                return None
            host, port = copy.getpeername()[:2]
            return _same(socket.inet_pton(copy.family, host.partition("%")[0])), port
    except OSError:
        return None


def look(pids: Iterable[int], server: Address, proc: Path = PROC) -> Generator[None, None, dict[int, int]]:
    """Count the connections to ``server`` that each process has of its own, in steps of at most about 2 ms.

    What this process holds as well does not count: a forked child has copies. A process without any is left out.

    Args:
        pids: processes in the same network namespace as this one.
        server: as ``peer`` returns it.
        proc: where the kernel's lists are.

    Returns:
        pid -> number, with the last step.
    """
    owners: dict[int, int] = {}
    for pid in pids:
        yield from _sockets(proc / str(pid), pid, owners)
    shared: dict[int, int] = {}
    yield from _sockets(proc / "self", 0, shared)
    own = {inode: pid for inode, pid in owners.items() if inode not in shared}
    if not own:
        # This is the usual case, and reading the kernel's tables takes milliseconds.
        return {}
    found: dict[int, int] = {}
    for name in ("tcp", "tcp6"):
        for inode in _connected(proc / "self" / "net" / name, server):
            if inode is None:
                yield
            elif inode in own:
                found[own[inode]] = found.get(own[inode], 0) + 1
    return found


def _sockets(process: Path, pid: int, owners: dict[int, int]) -> Iterator[None]:
    """Add inode -> ``pid`` for each socket of a process that may be a TCP one."""
    with contextlib.suppress(OSError):
        folder = f"{process}/fd/"
        for number, descriptor in enumerate(os.listdir(folder)):
            if number % _STEP == 0:
                yield
            with contextlib.suppress(OSError, ValueError):
                target = os.readlink(folder + descriptor)
                if target.startswith(_SOCKET) and _may_be_tcp(folder + descriptor):
                    owners[int(target[len(_SOCKET) : -1])] = pid


def _may_be_tcp(path: str) -> bool:
    try:
        return b"TCP" in os.getxattr(path, "system.sockprotoname")
    except (OSError, AttributeError):
        # The kernel or Python may lack it.
        return True


def _connected(table: Path, server: Address) -> Iterator[int | None]:
    """Return the inodes of the connections to ``server``, and None after each piece of the table."""
    address, port = server
    # The remote port and the state stand side by side: most lines need no closer look.
    wanted = b":%04X %02X " % (port, _ESTABLISHED)
    with contextlib.suppress(OSError), open(table, "rb", buffering=0) as file:
        rest = b""
        while piece := file.read(65536):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if wanted in line:
                    with contextlib.suppress(ValueError, IndexError):
                        words = line.split()
                        if _unpack(words[2].partition(b":")[0]) == address:
                            yield int(words[9])
            yield None


def _unpack(digits: bytes) -> bytes:
    """Return an address of the kernel's table, words of 32 bits in the machine's order, as network bytes."""
    words = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
    return _same(struct.pack(f"={len(words)}I", *words))


def _same(address: bytes) -> bytes:
    """Return one form for all addresses of the same machine that can be told to be: IPv4-mapped ones, loopback."""
    address = address.removeprefix(_MAPPED)
    if address == socket.inet_pton(socket.AF_INET6, "::1") or (len(address) == 4 and address[0] == _LOOPBACK[0]):
        return _LOOPBACK
    return address
