"""Some commands on their way to the server, and who hears of their replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..wire import Command

OnReplies = Callable[[list[Any]], None]
OnLost = Callable[[Exception], None]


def _ignore(_news: Any) -> None:
    """Be told of replies or of a loss that need no answer."""


class Exchange:
    """Some commands, and who hears of their replies.

    Args:
        commands: sent together, answered in order.
        on_replies: called once with all raw replies, error replies included as exceptions.
        on_lost: called once instead if the connection is lost first: the commands may or may not have been done.
    """

    __slots__ = ("commands", "ends_write", "on_lost", "on_replies", "replies")

    def __init__(self, commands: Sequence[Command], on_replies: OnReplies = _ignore, on_lost: OnLost = _ignore) -> None:
        self.commands = commands
        self.on_replies = on_replies
        self.on_lost = on_lost
        self.replies: list[Any] = []
        self.ends_write = False

    def again(self) -> Exchange:
        """Return the same exchange as if it had never been sent."""
        return Exchange(self.commands, self.on_replies, self.on_lost)
