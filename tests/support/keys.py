"""The keys that tests write and look for: as ``rq:...`` in their texts, under the prefix of this run in Redis."""

from __future__ import annotations

import re
from typing import TypeVar

import pytest

from rq_pooled.rq_api import key_prefix

Text = TypeVar("Text", str, bytes)

PREFIX = key_prefix()
#: For tests that run stock rq-scheduler beside ours.
default_prefix_only = pytest.mark.skipif(PREFIX != "rq", reason="rq-scheduler's own classes have 'rq:' built in")
#: Where a text begins with a key of RQ's or ours, or names one. Fields of jobs that begin so are none.
_KEY = re.compile(r"(?<![\w-])rq(?=(?:_pooled)?:(?!requeues|retry|next_at|signature|\s))")


def named(text: Text) -> Text:
    """Return a text in which each ``rq:`` and ``rq_pooled:`` that begins a key has the prefix RQ_KEY_PREFIX."""
    if isinstance(text, bytes):
        return _KEY.sub(PREFIX, text.decode(errors="surrogateescape")).encode(errors="surrogateescape")
    return _KEY.sub(PREFIX, text)
