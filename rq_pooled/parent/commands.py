"""Obeys the commands that RQ's ``rq.command`` sends to workers, and two of ours: be the sentry, claim nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..store.claim import Claim
from ..store.keys import HOLD_COMMAND, QUEUE, SENTRY_COMMAND, commands_channel
from .context import Context
from .slot import Slot
from .slots import Slots

#: Seconds between two looks whether the reply to a claim has come.
LOOK_AGAIN = 0.02


class Commands:
    """Replaces RQ's handlers of commands, which know one horse and use signals.

    Args:
        context, slots: as the names say.
        stop: begins a warm shutdown.
        make_sentry: called with whether jobs wait, see Wakeup.
        hold_changed: called with whether the worker is to claim nothing more.
    """

    def __init__(
        self,
        context: Context,
        *,
        slots: Slots,
        stop: Callable[[], None],
        make_sentry: Callable[[bool], None],
        hold_changed: Callable[[bool], None],
    ) -> None:
        self._context = context
        self._slots = slots
        self._stop = stop
        self._make_sentry = make_sentry
        self._hold_changed = hold_changed

    def obey(self, channel: str, payload: dict[str, Any]) -> None:
        """Obey one command.

        Args:
            channel: of the slot that it was sent to.
            payload: as rq.command made it.
        """
        log, name = self._context.log.logger, payload.get("command")
        slots = [slot for slot in self._slots.regular() if channel == commands_channel(slot.name)]
        if name == SENTRY_COMMAND:
            self._make_sentry(bool(payload.get("work")))
        elif name in (HOLD_COMMAND, "shutdown") and not _are_among(self._context.identity.queue_names, payload):
            # What Redis says of a worker's queues, others may have written.
            log.warning("Received a command that is not meant for all queues of this worker, ignored")
        elif name == HOLD_COMMAND:
            self._hold(payload.get("held") is True)
        elif name == "shutdown":
            log.info("Received shutdown command")
            self._stop()
        elif name == "kill-horse":
            for slot in slots:
                self._slots.waiting.put_back(slot)
                log.info("Received kill horse command%s", "" if slot.claim else "; not working, ignored")
                if slot.claim is not None:
                    self._slots.kill(slot)
        elif name == "stop-execution":
            # RQ 3 sends it.
            self._stop_job(payload, slots, str(payload.get("execution_id")))
        elif name == "stop-job":
            log.debug("Received command to stop job %s", payload.get("job_id"))
            self._stop_job(payload, slots)

    def _hold(self, held: bool) -> None:
        self._context.log.info("told to claim %s", "nothing more" if held else "again")
        self._hold_changed(held)

    def _stop_job(self, payload: dict[str, Any], slots: list[Slot], execution_id: str | None = None) -> None:
        job_id = str(payload.get("job_id"))

        def is_meant(claim: Claim) -> bool:
            return claim.job_id == job_id and _are_among([claim.queue_key.removeprefix(QUEUE)], payload)

        for slot in slots:
            self._slots.receive(slot)
            for claim in [one for one in slot.waiting if is_meant(one)]:
                if execution_id in (None, claim.execution_id) and self._slots.stop_waiting(slot, claim):
                    return
            # What waits behind it must not begin in its place, and die with its horse.
            self._slots.waiting.put_back(slot)
            if execution_id is not None and slot.claim is not None and slot.claim.execution_id != execution_id:
                continue
            if slot.claim is not None and is_meant(slot.claim) and slot.task and slot.task.kind == "perform":
                slot.stopped = True
                self._slots.kill(slot)
                return
        # The server may say that the job is started before it tells us.
        if any(slot.reserved for slot in slots):
            self._context.loop.call_later(LOOK_AGAIN, lambda: self._stop_job(payload, slots, execution_id))
            return
        self._context.log.logger.info("Not working on job %s, command ignored.", job_id)


def _are_among(queues: Sequence[str], payload: dict[str, Any]) -> bool:
    """Tell whether a command is meant for these queues. Our page says where its visitor may act, RQ nothing."""
    meant = payload.get("queues")
    return not isinstance(meant, list) or all(queue in meant for queue in queues)
