"""Sweeps failed jobs in the workers' maintenance, as the settings say."""

from __future__ import annotations

from collections.abc import Sequence
from logging import Logger

from redis.exceptions import ResponseError

from ..config.secrets import message_of
from ..config.settings import Settings
from ..errors import SweepUnderWay
from ..retry.backoff import Backoff
from .policies import Bury, Ghosts, Policy, Purge, Requeue
from .registry import Execute
from .sweeper import Sweeper

#: Seconds that a worker's maintenance gives to a queue, because one of its horses runs no jobs meanwhile.
MAINTENANCE_SECONDS = 5


def maintenance_policies(settings: Settings) -> list[Policy]:
    """Return the policies of the workers' maintenance, in their order, as the settings say."""
    policies: list[Policy] = [Ghosts()] if settings.sweep_ghosts else []
    if settings.sweep_requeue:
        delay = settings.sweep_requeue_delay
        policies.append(
            Requeue(
                exceptions=settings.sweep_requeue,
                times=settings.sweep_requeue_times,
                delay=Backoff(max=20, base=delay, cap=86_400, jitter="equal"),
                rate=settings.sweep_requeue_rate,
            )
        )
    if settings.sweep_bury_after is not None:
        age, count = settings.sweep_dead_age, settings.sweep_dead_count
        policies.append(Bury(older_than=settings.sweep_bury_after, max_age=age, max_count=count))
    if settings.sweep_purge_after is not None or settings.sweep_keep is not None:
        policies.append(Purge(older_than=settings.sweep_purge_after, beyond=settings.sweep_keep))
    return policies


def sweep_in_maintenance(queues: Sequence[str], policies: Sequence[Policy], execute: Execute, log: Logger) -> None:
    """Sweep these queues for at most ``MAINTENANCE_SECONDS`` each; skip a queue that another process sweeps.

    Raises:
        redis.exceptions.ConnectionError: the server was lost.
    """
    for queue in queues if policies else ():
        try:
            sweeper = Sweeper(queue, policies=policies, execute=execute)
            reports = sweeper.run(max_seconds=MAINTENANCE_SECONDS, check_queues=False)
        except SweepUnderWay as error:
            log.debug("not swept: %s", error)
        except ResponseError as error:
            log.warning("the failed jobs of queue %s cannot be swept: %s", queue, message_of(error))
        else:
            for report in reports:
                if report.done:
                    log.info("Failed jobs of %s: %s did %d", queue, report.policy, report.done)
