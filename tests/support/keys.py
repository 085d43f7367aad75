"""The keys that tests write and look for: as ``rq:...`` in their texts, under the prefix of this run in Redis."""

from __future__ import annotations

import re
from typing import TypeVar

from rq_pooled.rq_api import key_prefix

Text = TypeVar("Text", str, bytes)

PREFIX = key_prefix()
#: Where a text begins with a key of RQ's or ours, or names one. Fields of jobs that begin so are none.
_KEY = re.compile(r"(?<![\w-])rq(?=(?:_pooled)?:(?!requeues|retry|next_at|\s))")


def named(text: Text) -> Text:
    """Return a text in which each ``rq:`` and ``rq_pooled:`` that begins a key has the prefix RQ_KEY_PREFIX."""
    if isinstance(text, bytes):
        return _KEY.sub(PREFIX, text.decode(errors="surrogateescape")).encode(errors="surrogateescape")
    return _KEY.sub(PREFIX, text)
