"""Who may do what on the server: the rules of its access control (ACL) for each role of an application.

One table says which keys of ``keys.py`` a role writes. All else follows: who writes may use every data command on
those keys, and who only looks may use those that read. Scripts give no right: the server checks each command in them.
"""

from __future__ import annotations

from typing import NamedTuple

from . import keys

#: The keys that a process writes which enqueues, looks at jobs, cancels and deletes them, and publishes its statistics.
_ENQUEUES = (
    *(f"{keys.JOB}*", f"{keys.QUEUE}*", keys.QUEUES, f"{keys.RESULTS}*", f"{keys.registry_key('unique', '')}*"),
    *(f"{keys.DEFERRED}*", f"{keys.SCHEDULED}*", f"{keys.CANCELED}*", f"{keys.FINISHED}*", f"{keys.READY}*"),
    *(f"{keys.registry_key('failed', '')}*", f"{keys.WIP}*", f"{keys.EXECUTIONS}*", f"{keys.EXECUTION}*"),
    *(f"{keys.GROUP}*", keys.GROUPS, f"{keys.RATE_LIMIT}*", keys.RATE_LIMITS, f"{keys.SCHEDULER}*"),
    *(f"{keys.STATS}*", keys.RIGHTS_OF_RQ, keys.RIGHTS_OF_OURS, keys.NONE, f"{keys.LIMITS}*"),
    *(f"{keys.ONCE}*", f"{keys.ONCE_RUNNING}*", f"{keys.unique_key('')}*", f"{keys.budget_keys('')[0]}*"),
    *(f"{keys.dead_letters_key('')}*", f"{keys.FULL}*", f"{keys.LIMITED}*"),
)
#: The further keys of one who requeues, buries and purges failed jobs, and tells workers to pause.
_ACTS = (f"{keys.sweep_lock_key('')}*", f"{keys.notice_key('')}*", keys.SUSPENDED, keys.AUDIT, keys.PAUSED)

#: Scripts, several commands at once, and what the server tells about its version and its clients.
_ALWAYS = (
    *("eval", "evalsha", "script|load", "script|exists", "time", "info"),
    *("multi", "exec", "discard", "watch", "unwatch"),
)
#: How the server's connections are counted; the server calls it dangerous, since it shows addresses.
_LOOKS = ("client|list",)
#: Commands that show names of other applications' keys; tracking tells whichever key changes. The category has those
#: of servers to come, such as Valkey 9.1's CLUSTERSCAN. What in it names its key is given back.
_OTHERS_NAMES = ("@keyspace", "client|tracking")
_OF_A_KEY = ("dump", "exists", "object", "pttl", "touch", "ttl", "type")
_CHANGE_A_KEY = (
    *("copy", "del", "expire", "expireat", "persist", "pexpire", "pexpireat", "rename", "renamenx", "unlink"),
)
#: Functions are the server's, and no keys': who replaces another application's runs code with its callers' rights.
_SERVERS = ("function",)
#: How the nodes of a cluster, and the state of replication, are asked.
_PLACES = ("cluster|shards", "cluster|slots", "cluster|myid")


class Role(NamedTuple):
    """What one kind of process needs.

    Args:
        purpose: says in a line what it is for.
        writes: patterns of keys that it reads and writes.
        reads: patterns of keys that it only reads.
        channels: patterns of channels.
        commands: what it may call besides the commands on data.
        without: commands on data that it does not need.
    """

    purpose: str
    writes: tuple[str, ...]
    reads: tuple[str, ...]
    channels: tuple[str, ...]
    commands: tuple[str, ...]
    may_write: bool = True
    without: tuple[str, ...] = ()


_STOPS = keys.commands_channel("*")
ROLES = {
    "worker": Role(
        "a worker, and rq-pooled's commands",
        keys.ALL,
        (),
        (_STOPS, keys.EVENTS, keys.NONE, "__redis__:invalidate"),
        (*_ALWAYS, *_LOOKS, *_PLACES, "subscribe", "publish"),
        # Maintenance finds executions by the names of their keys, and `rq-pooled rescue` finds jobs.
        without=("randomkey",),
    ),
    "jobs": Role(
        "jobs' own connections (RQ_POOLED_JOBS_LOGIN)",
        (*_ENQUEUES, f"{keys.ASIDE}*"),
        keys.ALL,
        (keys.NONE,),
        (*_ALWAYS, "publish", *_OF_A_KEY, *_CHANGE_A_KEY),
        without=_OTHERS_NAMES,
    ),
    "web": Role(
        "a process that enqueues, and shows health and metrics",
        _ENQUEUES,
        keys.ALL,
        (),
        (*_ALWAYS, *_LOOKS, *_PLACES, *_OF_A_KEY, *_CHANGE_A_KEY),
        without=_OTHERS_NAMES,
    ),
    "page": Role(
        "the page, where it acts",
        (*_ENQUEUES, *_ACTS),
        keys.ALL,
        (_STOPS,),
        (*_ALWAYS, *_LOOKS, *_PLACES, "publish", *_OF_A_KEY, *_CHANGE_A_KEY),
        without=_OTHERS_NAMES,
    ),
    "page-view": Role(
        "the page, where it only shows",
        # A script that is given a key wants to write it, says the server; there are no commands to do so.
        keys.ALL,
        (),
        (),
        (*_ALWAYS, *_LOOKS, *_PLACES, *_OF_A_KEY),
        may_write=False,
        without=_OTHERS_NAMES,
    ),
}


def rules(role: Role, prefix: str | None = None) -> list[str]:
    """Return the rules of a role, in the order in which the server has to read them.

    Args:
        role: one of ROLES.
        prefix: of the application's keys, this process's own if not given.
    """
    names = [("~", role.writes), ("%R~", role.reads), ("&", role.channels)]
    words = ["resetkeys", "resetchannels", "-@all"]
    words += [sign + keys.under(prefix, one) for sign, patterns in names for one in patterns]
    words += ["+@connection", "+@read", *(["+@write"] if role.may_write else []), "-@dangerous"]
    words += [f"-{command}" for command in (*_SERVERS, *role.without)]
    return words + [f"+{command}" for command in role.commands]
