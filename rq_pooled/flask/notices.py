"""What a button of the page has done, told on the page that follows: kept in Redis, since an address can be made up."""

from __future__ import annotations

import json
import re
from secrets import token_hex
from typing import Any

from redis import Redis

from ..store.keys import notice_key

#: Seconds for which it is kept: the browser asks for the page at once.
_KEPT = 60
_TOKEN = re.compile(r"[0-9a-f]{32}")


def tell(client: Redis, did: str, queue: str, count: int, more: bool, untold: bool = False) -> str:
    """Note what was done and return the word under which ``told`` finds it. Blocks for a round trip."""
    token = token_hex(16)
    client.set(notice_key(token), json.dumps([did, queue, count, more, untold]), ex=_KEPT)
    return token


def told(client: Redis, token: str) -> dict[str, Any]:
    """Return ``did``, ``queue``, ``count``, ``more`` and ``untold`` (the trail was not written), or nothing.

    Blocks for a round trip, if at all.
    """
    note: Any = client.get(notice_key(token)) if _TOKEN.fullmatch(token) else None
    try:
        did, queue, count, more, untold = json.loads(note or "")
    except (TypeError, ValueError):
        # The text is no notice, or none of ours.
        return {}
    return {"did": did, "queue": queue, "count": count, "more": more, "untold": untold}
