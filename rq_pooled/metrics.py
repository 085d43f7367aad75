"""What ``health`` knows as Prometheus text; needs ``prometheus_client`` (``pip install 'rq_pooled[metrics]'``)."""

from .monitoring.metrics import CONTENT_TYPE, metrics

__all__ = ["CONTENT_TYPE", "metrics"]
