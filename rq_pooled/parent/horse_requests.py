"""What horses ask Redis through the parent, on its command connection."""

from __future__ import annotations

from typing import Any

from redis.exceptions import ResponseError

from ..config.secrets import message_of
from ..connection.away import NotSent, is_blamed
from ..store.commit import guarded_reads
from .context import Context
from .events import Events
from .exchange import Exchange
from .slot import Slot

#: How often a read is sent with which the connection was lost: its reply may be the reason.
MAX_LOSSES = 4


class HorseRequests:
    """Holds requests until they are sent, and answers the horses, which wait."""

    def __init__(self, context: Context, events: Events) -> None:
        self._context = context
        self._waiting: list[Exchange] = []
        events.server_lost.append(self._on_away)

    @property
    def due(self) -> bool:
        """Tell whether any wait."""
        return bool(self._waiting)

    def exchanges(self) -> list[Exchange]:
        """Return what is to be sent; it is not held any longer."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def _on_away(self, error: Exception) -> None:
        """Answer what was not sent yet, as if it had been."""
        for exchange in reversed(self.exchanges()):
            exchange.on_lost(NotSent(str(error)))

    def add(self, slot: Slot, kind: str, words: list[list[bytes]]) -> None:
        """Ask Redis on behalf of a horse, which waits for the answer."""
        task, horse = slot.task, slot.horse

        def reply(answer: Any) -> None:
            # Otherwise the horse that asked has died.
            if slot.task is task and slot.horse is horse:
                slot.reply(("reply", answer))

        losses = 0

        def ask_again(error: Exception) -> None:
            nonlocal losses
            losses += is_blamed(error)
            if slot.task is not task or slot.horse is not horse:
                return
            if losses < MAX_LOSSES:
                self._waiting.insert(0, exchange.again())
            else:
                reply(f"the connection was lost {losses} times while it was read: {message_of(error)}")

        commands = [guarded_reads(words)] if kind == "read" else [tuple(command) for command in words]

        def on_replies(replies: list[Any]) -> None:
            answer: Any
            if kind == "read":
                answer = str(replies[0]) if isinstance(replies[0], ResponseError) else replies[0]
            else:
                answer = [_passable(reply) for reply in replies]
            reply(answer)

        exchange = Exchange(commands, on_replies)
        # Part of an outcome, which waits for the server to come back.
        if kind == "read":
            exchange.on_lost = ask_again
            self._waiting.append(exchange)
        elif self._context.command.connected:
            exchange.on_lost = lambda error: reply(str(error))
            self._waiting.append(exchange)
        else:
            reply("the server is away")


def _passable(reply: Any) -> Any:
    """Return a reply as a horse can be sent it; errors stand in replies of EXEC and of scripts, too."""
    if isinstance(reply, list):
        return [_passable(one) for one in reply]
    return ("error", str(reply)) if isinstance(reply, ResponseError) else reply
