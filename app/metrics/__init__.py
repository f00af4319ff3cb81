"""What monitoring systems read: /metrics, in Prometheus' text format (docs/metrics.md).

What is true of the whole deployment comes from the stores, so that every process gives the same answer and a restart
changes nothing. What a process alone knows, its requests, is counted where all processes of its container see it.
"""

from app.metrics.route import init_metrics

__all__ = ["init_metrics"]
