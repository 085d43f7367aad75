"""What rq_pooled costs and saves, next to stock RQ on the same machine in the same run; see docs/benchmarks.md."""
