"""Finds variables of the environment that look like a misspelt setting."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches

from .settings import PREFIX, Settings


def misspelt(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return one line for each variable that is no setting but has nearly the name of one.

    The line is a hint, because the variable may belong to a newer release. Kubernetes gives every pod
    RQ_POOLED_SERVICE_HOST and more if a service is called rq-pooled, so only near misses are named.

    Args:
        environ: the environment, ``os.environ`` unless given.
    """
    known = [setting.env[0] for setting in Settings.rows()]
    lines = []
    for name in sorted(os.environ if environ is None else environ):
        if name.upper().startswith(PREFIX) and name not in known:
            # The prefix is not compared, because with it any two names would be alike.
            tails = {one[len(PREFIX) :]: one for one in known}
            near = get_close_matches(name.upper()[len(PREFIX) :], list(tails), 1, cutoff=0.8)
            if near:
                lines.append(
                    f"the environment variable {name} is no setting and has no effect: did you mean {tails[near[0]]}?"
                )
    return lines
