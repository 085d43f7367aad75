"""The configuration of `rq cron` that docs/scheduling.md shows."""

from rq import cron
from tasks import nightly

cron.register(nightly, queue_name="reports", cron="0 3 * * *")
