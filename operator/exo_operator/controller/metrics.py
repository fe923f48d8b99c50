"""The operator's Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector


class Metrics:
    """All metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.reconciles = Counter(
            "exo_operator_reconciles",
            "Reconciles by kind and result.",
            ["kind", "result"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "exo_operator_reconcile_seconds",
            "Duration of a reconcile.",
            ["kind"],
            registry=self.registry,
        )
        self.actions = Counter(
            "exo_operator_actions",
            "What the operator did, by action and kind.",
            ["action", "kind"],
            registry=self.registry,
        )
        self.events = Counter(
            "exo_operator_watch_events", "Watch events by kind.", ["kind"], registry=self.registry
        )
        self.queue = Gauge(
            "exo_operator_queue_length", "Keys waiting in the work queue.", registry=self.registry
        )
        self.objects = Gauge(
            "exo_operator_objects", "Objects in the cache.", registry=self.registry
        )
        self.leader = Gauge(
            "exo_operator_leader", "1 on the replica that leads.", registry=self.registry
        )
        self.nodes = Gauge(
            "exo_operator_nodes", "ExoNodes by readiness.", ["ready"], registry=self.registry
        )
