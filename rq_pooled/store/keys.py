"""The keys and channels in Redis: all of ours, and those of RQ and rq-scheduler that are written by hand.

The scripts in lua/ know them by their own literals. Each of ours begins with ``rq_pooled:``.
"""

from __future__ import annotations

# -- ours ------------------------------------------------------------------------------------------------------------

#: No key has this name: a command on it, or a message to it, changes nothing.
NONE = "rq_pooled:none"
#: The sorted set of the processes that publish statistics: key of the hash -> server time at which that expires.
STATS = "rq_pooled:stats"
#: The list of samples of the number of clients, newest first. Its name begins as that of the statistics: neither
#: belongs to a job.
SAMPLES = f"{STATS}:samples"
#: The sorted set of workers that are starting, in the order in which they came.
STARTING = f"{STATS}:starting"
#: A text on which commands are tried, see rights.lua.
RIGHTS = f"{STATS}:rights"
#: The prefixes under which a server before 7.0 is asked about rights: RQ's keys, and ours.
RIGHTS_OF_RQ, RIGHTS_OF_OURS = "rq:rights", "rq_pooled:rights"
#: The PubSub channel on which workers announce levels and leaks as JSON, once however many workers there are.
EVENTS = "rq_pooled:events"
#: Queue -> its limit, and the one that code declares, see queue/limits.py.
LIMITS, DECLARED_LIMITS = "rq_pooled:limits", "rq_pooled:limits:code"


def stats_key(process: str) -> str:
    """Return the hash of the statistics of a process."""
    return f"{STATS}:{process}"


def speaker_key(event: str) -> str:
    """Return the lock of the worker that asks for CLIENT LIST and announces an event for all."""
    return f"{STATS}:speaker:{event}"


def claims_key(token: str) -> str:
    """Return the hash in which the worker with this process token has its claims noted.

    Claim -> its queue, the key of the queue that it was popped from and its worker's name, a line each.
    """
    return f"rq_pooled:claims:{token}"


def aside_key(member: str) -> str:
    """Return the hash of the large values of a claim's outcome, see aside.lua."""
    return f"rq_pooled:aside:{member}"


def budget_keys(name: str) -> tuple[str, str, str, str]:
    """Return the leases of a budget, what each holds, the order of their commands, and who waits; see budget.lua."""
    leases = f"rq_pooled:budget:{name}"
    return leases, f"{leases}:held", f"{leases}:order", f"{leases}:waiting"


def leases_key(queue: str) -> str:
    """Return the sorted set of the leases of a queue's claims: claim -> server time at which it ends."""
    return f"rq_pooled:leases:{queue}"


def sweep_lock_key(queue: str) -> str:
    """Return the lock under which one sweep at a time works on a queue's failed jobs; its value is the owner."""
    return f"rq_pooled:sweep:{queue}"


def dead_letters_key(queue: str) -> str:
    """Return the sorted set of a queue's dead letters: job id -> when it is deleted, seconds since the epoch."""
    return f"rq_pooled:dead:{queue}"


def once_key(key: str) -> str:
    """Return the text that keeps a spent key, see store/once.py."""
    return f"rq_pooled:once:{key}"


def once_running_key(key: str) -> str:
    """Return the text that names the claim of the job with this key that runs."""
    return f"rq_pooled:once-running:{key}"


def unique_key(digest: str) -> str:
    """Return the text that names the job which is the only one of its call, see queue/unique.py."""
    return f"rq_pooled:unique:{digest}"


def notice_key(token: str) -> str:
    """Return the text that tells the page what an action has done."""
    return f"rq_pooled:notice:{token}"


# -- RQ's ------------------------------------------------------------------------------------------------------------

#: The set of the keys of all queues.
QUEUES = "rq:queues"
#: Exists while the workers are told to take no jobs.
SUSPENDED = "rq:suspended"
#: The set of the names of all groups, and that of the keys of all rate limits.
GROUPS, RATE_LIMITS = "rq:groups", "rq:rl-keys"
#: The prefixes of the names of jobs and queues.
JOB, QUEUE = "rq:job:", "rq:queue:"


def job_key(job_id: str) -> str:
    """Return the hash of a job."""
    return f"{JOB}{job_id}"


def results_key(job_id: str) -> str:
    """Return the stream of a job's results."""
    return f"rq:results:{job_id}"


def execution_key(job_id: str, execution_id: str) -> str:
    """Return the hash of an execution."""
    return f"rq:execution:{job_id}:{execution_id}"


def executions_key(job_id: str) -> str:
    """Return the sorted set of the executions of a job."""
    return f"rq:executions:{job_id}"


def queue_key(queue: str) -> str:
    """Return the list of a queue."""
    return f"{QUEUE}{queue}"


def registry_key(kind: str, queue: str) -> str:
    """Return a registry of a queue, as ``wip``, ``failed`` or ``scheduled``."""
    return f"rq:{kind}:{queue}"


def worker_key(name: str) -> str:
    """Return the hash of a worker."""
    return f"rq:worker:{name}"


def workers_key(queue: str) -> str:
    """Return the set of the workers of a queue."""
    return f"rq:workers:{queue}"


def commands_channel(name: str) -> str:
    """Return the channel of the commands to a worker."""
    return f"rq:pubsub:{name}"


def group_key(group: str) -> str:
    """Return the set of the jobs of a group."""
    return f"rq:group:{group}"


def waiting_key(limit: str) -> str:
    """Return the sorted set of the jobs that wait at a rate limit; RQ 3's."""
    return f"rq:rl:{limit}:rate_limited"


# -- rq-scheduler's --------------------------------------------------------------------------------------------------

#: Job -> when it is due, and the lock of who moves them.
SCHEDULED_JOBS, SCHEDULER_LOCK = "rq:scheduler:scheduled_jobs", "rq:scheduler_lock"
