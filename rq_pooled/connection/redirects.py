"""What a node of a cluster says of a command that it has not run: the slot is elsewhere, on its way, or nowhere."""

from __future__ import annotations

import re

from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError, TryAgainError

from ..config.secrets import message_of

#: MovedError is an AskError, and MasterDownError a ClusterDownError.
_CLASSES: tuple[tuple[type[Exception], str], ...] = (
    (MovedError, "MOVED"),
    (AskError, "ASK"),
    (TryAgainError, "TRYAGAIN"),
    (ClusterDownError, "CLUSTERDOWN"),
)
_REDIRECTS = ("MOVED", "ASK")
_REFUSALS = (*_REDIRECTS, "TRYAGAIN", "CLUSTERDOWN")
_MOVED = re.compile(r"(?:^|\s)(\d+) (\S*):(\d+)\s*$")


def is_refusal(error: BaseException | None) -> bool:
    """Tell whether an error says that the node does not serve the slot now, and that the command did not run."""
    return _word(error) in _REFUSALS


def is_elsewhere(error: BaseException) -> bool:
    """Tell whether an error, or the reply that it was raised for, is a node's refusal: that node answers still."""
    return is_refusal(error) or is_refusal(error.__cause__)


def is_of_slot(error: Exception, slot: int) -> bool:
    """Tell whether a refusal is about a slot, and so passes once its owner is asked; see ``is_refusal``.

    A command of a job on a key without our hash tag is answered MOVED for ever.
    """
    told = redirect_of(error)
    return told is None or told[0] == slot


def said(error: BaseException) -> str:
    """Return a refusal as the node said it: redis-py takes the first word off the text."""
    word = _word(error) if is_redirect(error) and not str(error).startswith(_REDIRECTS) else ""
    return f"{word} {message_of(error)}".strip()


def is_redirect(error: BaseException) -> bool:
    """Tell whether an error names another node for a key."""
    return _word(error) in _REDIRECTS


def is_moved(error: BaseException) -> bool:
    """Tell whether an error says that a slot has its place elsewhere."""
    return _word(error) == "MOVED"


def _word(error: BaseException | None) -> str:
    """Return the first word of a refusal: where redis-py has a class for it, that word is not in the text any more."""
    for cls, word in _CLASSES:
        if isinstance(error, cls):
            return word
    # redis-py 5 has these classes for its own client of clusters only.
    return str(error).partition(" ")[0] if isinstance(error, ResponseError) else ""


def redirect_of(error: BaseException) -> tuple[int, str, int] | None:
    """Return the slot, host and port that an error names; None if it names none."""
    told = _MOVED.search(str(error)) if is_redirect(error) else None
    return None if told is None else (int(told[1]), told[2], int(told[3]))
