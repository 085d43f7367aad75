"""Who is at the other end of a Unix socket: folders for temporary files are shared with other users."""

from __future__ import annotations

import os
import socket
import struct

_IDS = "3i"


def is_of_this_user(connected: socket.socket) -> bool:
    """Tell whether the other end has our user id; where the system does not say, the socket's folder keeps others out.

    It is that of the process that listens, or that has connected. Does not block.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True
    _pid, uid, _gid = struct.unpack(_IDS, connected.getsockopt(socket.SOL_SOCKET, option, struct.calcsize(_IDS)))
    return bool(uid == os.geteuid())
