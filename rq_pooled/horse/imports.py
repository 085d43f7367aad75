"""What a job calls, found without a search for its module, which RQ makes twice per job."""

from __future__ import annotations

import sys
from typing import Any

import rq.job

from ..originals import is_rqs_own

_NONE = object()


def use_in_jobs() -> None:
    """Have ``rq.job.Job`` of this process find what jobs call so; for a horse, whose process is ours."""
    rqs: Any = getattr(rq.job, "import_attribute", None)
    # What was put in its place is to be called.
    if not is_rqs_own(rqs):
        return

    def import_attribute(name: Any) -> Any:
        if type(name) is str:
            module_name, _, attribute = name.rpartition(".")
            module = sys.modules.get(module_name)
            # While another thread imports it, RQ waits.
            if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
                found = getattr(module, attribute, _NONE)
                if found is not _NONE:
                    return found
        return rqs(name)

    rq.job.import_attribute = import_attribute  # type: ignore[attr-defined]
