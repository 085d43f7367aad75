"""What ``rq-pooled check --secure`` looks at: the rights of this process's user on the server, and its keys."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from ..config.settings import Settings
from ..foreign import MAX_VALUE, printable
from ..monitoring.processes import processes
from ..monitoring.words import count, some
from ..signing.policy import policy_of

#: What no process of ours needs: a key of another application, the server's configuration, and its users.
_BEYOND = (
    ("EXISTS", "another-application:key", "other applications' keys"),
    ("GET", "another-application:key", "other applications' keys"),
    ("CONFIG GET", "maxclients", "the server's configuration"),
    ("ACL GETUSER", "another-user", "the server's users"),
)


def rights(client: Redis) -> tuple[bool, str]:
    """Tell whether the server refuses this user what it does not need; leaves lines in its ACL LOG. Blocks."""
    try:
        user = printable(str(client.client_info().get("user", "")) or "unknown", MAX_VALUE)
    except ResponseError:
        user = "unknown"
    open_to_it = []
    # redis-py leaves it untyped.
    execute: Any = client.execute_command
    for command, word, what in _BEYOND:
        try:
            execute(command, word)
            open_to_it += [what] * (what not in open_to_it)
        except NoPermissionError:
            pass
    if open_to_it:
        return False, f"the user {user} may read {', '.join(open_to_it)}: see rq-pooled acl"
    return True, f"the user {user} has no rights beyond the application"


def workers(client: Redis) -> str:
    """Return which workers of ours run jobs without a signature, or may do so; "" if there are none. Blocks."""
    unreadable: list[str] = []
    found = [one["worker"] for one in processes(client, unreadable) if one["worker"]]
    open_to_all = [one["name"] for one in found if one["signing"] != "require"]
    said = []
    if open_to_all:
        of = f"{len(open_to_all)} of {count(len(found), 'worker')}"
        said.append(f"jobs without a signature are run by {of}: {some(open_to_all)}")
    if unreadable:
        said.append(f"statistics that are not read may be of workers without keys: {some(unreadable)}")
    return "; ".join(said)


def signing(settings: Settings) -> tuple[bool, str]:
    """Tell whether this process's settings have jobs signed, and refuse others."""
    policy = policy_of(settings)
    if policy.keys is None:
        return False, "jobs are not signed: set SIGNING_KEYS"
    if policy.unsigned:
        return False, "jobs without a signature run, too: remove SIGNING=accept-unsigned"
    allowed = "" if policy.allowed else ", and may call anything: see ALLOWED"
    return True, f"jobs are signed with the key {policy.keys.name.decode()}{allowed}"
