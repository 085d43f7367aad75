"""Names the keys and channels in Redis: all of ours, and those of RQ and rq-scheduler that our code uses directly.

Each begins with the prefix that RQ reads from RQ_KEY_PREFIX, by default ``rq``; each of ours begins with
``<prefix>_pooled:``. Comments, here and in the scripts, write them with ``rq``.

A script in lua/ knows each upper-case text of this module by the same name: ``JOB .. id`` there is ``JOB + id`` here.
"""

from __future__ import annotations

from .. import rq_api

#: The prefix of all keys, and the prefix of ours.
PREFIX = rq_api.key_prefix()
OURS = f"{PREFIX}_pooled"


def literal(text: str) -> str:
    """Return a pattern of SCAN that matches this text only."""
    return "".join(f"\\{letter}" if letter in "*?[]^\\" else letter for letter in text)


def under(prefix: str | None, pattern: str) -> str:
    """Return a pattern of keys or channels as it is for an application with a prefix, this one's if not given."""
    return literal(prefix or PREFIX) + pattern[len(PREFIX) :] if pattern.startswith(PREFIX) else pattern


#: Patterns of all keys of the application.
ALL = (f"{PREFIX}:*", f"{OURS}:*")

# -- ours ------------------------------------------------------------------------------------------------------------

#: A name that no key has, so a command on it, or a message to it, changes nothing.
NONE = f"{OURS}:none"
#: The sorted set of the processes that publish statistics: key of the hash -> server time at which the hash expires.
STATS = f"{OURS}:stats"
#: The list of samples of the number of clients, newest first. It shares the prefix of the statistics, since neither
#: belongs to a job.
SAMPLES = f"{STATS}:samples"
#: The hash of paused queues: queue -> when it was paused, see queue/pause.py.
PAUSED = f"{OURS}:paused"
#: The stream of what operators did, newest last, see monitoring/audit.py.
AUDIT = f"{OURS}:audit"
#: The list of jobs that ended: 240 texts "slot finished failed", newest first, for slots of 15 s of the server's clock.
ENDED = f"{STATS}:ended"
#: The prefixes of the texts that name the sentry of a crew, and of the sorted sets of those who sleep beside it, see
#: store/sentries.py.
SENTRY, SLEEPERS = f"{STATS}:sentry:", f"{STATS}:sleepers:"
#: The sorted set of workers that are starting, in the order in which they came.
STARTING = f"{STATS}:starting"
#: The text on which commands are tried, see rights.lua.
RIGHTS = f"{STATS}:rights"
#: The prefixes under which a server before 7.0 is asked about rights on RQ's keys, and on ours.
RIGHTS_OF_RQ, RIGHTS_OF_OURS = f"{PREFIX}:rights", f"{OURS}:rights"
#: The PubSub channel on which levels and leaks are announced as JSON, once for all workers together.
EVENTS = f"{OURS}:events"
#: The hashes of queue -> limit in force, and of queue -> limit declared by code, see queue/limits.py.
LIMITS, DECLARED_LIMITS = f"{OURS}:limits", f"{OURS}:limits:code"
#: The locks under which one worker at a time looks for stalled jobs, and for ghosts.
STALLED_LOCK, GHOSTS_LOCK = f"{OURS}:lock:stalled", f"{OURS}:lock:ghosts"
#: The prefixes of the starts that a limit counts, and of the keys that exist while a queue's limit is reached: by
#: running jobs, by started jobs.
STARTS, FULL, LIMITED = f"{OURS}:starts:", f"{OURS}:full:", f"{OURS}:limited:"
#: The prefixes of leases, of large values of outcomes, of spent keys, and of keys whose job runs.
LEASES, ASIDE, ONCE, ONCE_RUNNING = f"{OURS}:leases:", f"{OURS}:aside:", f"{OURS}:once:", f"{OURS}:once-running:"
#: Name of the control command that makes a worker the sentry. Its field ``work`` tells whether jobs wait already.
SENTRY_COMMAND = f"{OURS}:sentry"
#: The command that has a worker claim nothing more, or claim again.
HOLD_COMMAND = f"{OURS}:hold"
#: The prefix of the ids seen in a queue's intermediate queue, see intermediate.lua.
INTERMEDIATE = f"{OURS}:intermediate:"
#: The prefix of the sorted sets of dead letters.
DEAD = f"{OURS}:dead:"


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
    return f"{OURS}:claims:{token}"


def aside_key(member: str) -> str:
    """Return the hash of the large values of a claim's outcome, see aside.lua."""
    return f"{ASIDE}{member}"


def budget_keys(name: str) -> tuple[str, str, str, str]:
    """Return the keys of a budget: leases, their connections, their commands' order, and waiting; see budget.lua."""
    leases = f"{OURS}:budget:{name}"
    return leases, f"{leases}:held", f"{leases}:order", f"{leases}:waiting"


def leases_key(queue: str) -> str:
    """Return the sorted set of the leases of a queue's claims: claim -> server time at which it ends."""
    return f"{LEASES}{queue}"


def sweep_lock_key(queue: str) -> str:
    """Return the lock under which one sweep at a time works on a queue's failed jobs; its value is the owner."""
    return f"{OURS}:sweep:{queue}"


def dead_letters_key(queue: str) -> str:
    """Return the sorted set of a queue's dead letters: job id -> when it is deleted, seconds since the epoch."""
    return f"{DEAD}{queue}"


def once_key(key: str) -> str:
    """Return the text that keeps a spent key, see store/once.py."""
    return f"{ONCE}{key}"


def once_running_key(key: str) -> str:
    """Return the text that names the claim of the running job with this key."""
    return f"{ONCE_RUNNING}{key}"


def unique_key(digest: str) -> str:
    """Return the text that names the only job of a unique call, see queue/unique.py."""
    return f"{OURS}:unique:{digest}"


def notice_key(token: str) -> str:
    """Return the text that tells the page what an action has done."""
    return f"{OURS}:notice:{token}"


# -- RQ's ------------------------------------------------------------------------------------------------------------

#: The sets of the keys of all queues, and of all workers; a queue's own set of workers has its name appended.
QUEUES, WORKERS = f"{PREFIX}:queues", f"{PREFIX}:workers"
#: Exists while the workers are told to take no jobs.
SUSPENDED = f"{PREFIX}:suspended"
#: The set of the names of all groups, and the set of the keys of all rate limits.
GROUPS, RATE_LIMITS = f"{PREFIX}:groups", f"{PREFIX}:rl-keys"
#: The prefixes of jobs, queues, workers, groups and rate limits.
JOB, QUEUE, WORKER = f"{PREFIX}:job:", f"{PREFIX}:queue:", f"{PREFIX}:worker:"
GROUP, RATE_LIMIT = f"{PREFIX}:group:", f"{PREFIX}:rl:"
#: The prefixes of a job's results, of an execution's hash, and of the sorted set of a job's executions.
RESULTS, EXECUTION, EXECUTIONS = f"{PREFIX}:results:", f"{PREFIX}:execution:", f"{PREFIX}:executions:"
#: A pattern of SCAN that finds the keys of both kinds.
EXECUTION_PATTERN = f"{literal(PREFIX)}:execution*"
#: The prefixes of registries; started jobs stand in ``wip``.
WIP, FINISHED, CANCELED = f"{PREFIX}:wip:", f"{PREFIX}:finished:", f"{PREFIX}:canceled:"
DEFERRED, SCHEDULED, READY = f"{PREFIX}:deferred:", f"{PREFIX}:scheduled:", f"{PREFIX}:ready:"
FAILED = f"{PREFIX}:failed:"
#: The prefixes of RQ's schedulers, and of the locks under which one at a time moves a queue's due jobs.
SCHEDULER, DUE_LOCK = f"{PREFIX}:scheduler:", f"{PREFIX}:scheduler-lock:"


def job_key(job_id: str) -> str:
    """Return the hash of a job."""
    return f"{JOB}{job_id}"


def results_key(job_id: str) -> str:
    """Return the stream of a job's results."""
    return f"{RESULTS}{job_id}"


def execution_key(job_id: str, execution_id: str) -> str:
    """Return the hash of an execution."""
    return f"{EXECUTION}{job_id}:{execution_id}"


def executions_key(job_id: str) -> str:
    """Return the sorted set of the executions of a job."""
    return f"{EXECUTIONS}{job_id}"


def queue_key(queue: str) -> str:
    """Return the list of a queue."""
    return f"{QUEUE}{queue}"


def registry_key(kind: str, queue: str) -> str:
    """Return a registry of a queue, such as ``wip``, ``failed`` or ``scheduled``."""
    return f"{PREFIX}:{kind}:{queue}"


def worker_key(name: str) -> str:
    """Return the hash of a worker."""
    return f"{WORKER}{name}"


def workers_key(queue: str) -> str:
    """Return the set of the workers of a queue."""
    return f"{WORKERS}:{queue}"


def commands_channel(name: str) -> str:
    """Return the channel of the commands to a worker."""
    return f"{PREFIX}:pubsub:{name}"


def group_key(group: str) -> str:
    """Return the set of the jobs of a group."""
    return f"{GROUP}{group}"


def waiting_key(limit: str) -> str:
    """Return the sorted set of the jobs that wait at a rate limit of RQ 3."""
    return f"{RATE_LIMIT}{limit}:rate_limited"


#: RQ's cron: the sorted set of its processes, and the prefix of the hash of each, which tells its jobs as JSON.
CRON_SCHEDULERS, CRON_SCHEDULER = f"{PREFIX}:cron_schedulers", f"{PREFIX}:cron_scheduler:"


# -- rq-scheduler's --------------------------------------------------------------------------------------------------

#: The sorted set of job -> due time, and the lock under which jobs are moved. rq-scheduler's own class and command
#: always use ``rq``; our Scheduler uses the prefix.
SCHEDULED_JOBS, SCHEDULER_LOCK = f"{SCHEDULER}scheduled_jobs", f"{PREFIX}:scheduler_lock"
#: The hash of a running scheduler: the single key of old versions, and the prefix of today's keys.
SCHEDULER_RUNS, SCHEDULER_INSTANCE = f"{PREFIX}:scheduler", f"{PREFIX}:scheduler_instance:"
