"""Prometheus metrics of the lifecycle, on a registry that the caller chooses.

Events (transitions, hook runs, tasks) are counted as they happen. The state of each resource is
read at scrape time from the weak registry, so a resource that no longer exists has no series.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Final
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from exo.lifecycle import (
    AsyncResource,
    ResourceState,
    ResourceStatistics,
    StateChange,
    add_global_listener,
    live_resources,
)
from exo.lifecycle.degradations import degradations
from exo.lifecycle.events import HookRun, LifecycleEvent, Recovered, TaskEnded, TaskStarted

# What the records of all resources have: shown by the other metrics.
_COMMON: Final = frozenset(each.name for each in fields(ResourceStatistics))
SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class ResourceStates(Collector):
    """`exo_resource_state{resource_id,resource_type,state}`: 1 for the current state of each live
    resource, 0 for the other states.
    """

    def collect(self) -> Iterator[Metric]:
        states = GaugeMetricFamily(
            "exo_resource_state",
            "1 for the state a resource is in",
            labels=("resource_id", "resource_type", "state"),
        )
        # Two live resources may have the same id (a closed one and its successor): the younger
        # counts.
        for (name, kind), state in {
            (r.resource_id, r.resource_type): r.state for r in live_resources()
        }.items():
            for each in ResourceState:
                states.add_metric((name, kind, each.value), float(each is state))
        yield states
        counts = GaugeMetricFamily(
            "exo_resources", "Live resources by type and state", labels=("type", "state")
        )
        for (kind, value), number in Tally(
            (r.resource_type, r.state.value) for r in live_resources()
        ).items():
            counts.add_metric((kind, value), number)
        yield counts
        yield _degradations()
        yield _figures()


def _degradations() -> Metric:
    shown = GaugeMetricFamily(
        "exo_degraded", "1 for each named degradation", labels=("name", "to", "resource_id")
    )
    for made in degradations():
        shown.add_metric((made.name, made.to, made.resource_id), 1.0)
    return shown


def _figures() -> Metric:
    """What the resources count of their own: the fields that a subclass of `ResourceStatistics`
    adds. So a new figure of a stage or a ring is one field of its record.
    """
    shown = GaugeMetricFamily(
        "exo_resource_figure",
        "Numbers that a resource keeps of its own work, such as the passes of a stage",
        labels=("resource_id", "resource_type", "figure"),
    )
    for resource in {r.resource_id: r for r in live_resources()}.values():
        if not isinstance(resource, AsyncResource):
            continue
        for name, value in _numbers(resource.statistics()):
            shown.add_metric((resource.resource_id, resource.resource_type, name), value)
    return shown


def _numbers(record: object, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record, and of the records in it as `field_name`."""
    assert is_dataclass(record)
    for each in fields(record):
        value = getattr(record, each.name)
        if each.name in _COMMON:
            continue
        if isinstance(value, int | float):
            yield f"{prefix}{each.name}", float(value)
        elif is_dataclass(value):
            yield from _numbers(value, f"{each.name}_")


class LifecycleMetrics:
    """Counts the lifecycle's events on a registry until `close()`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        kind = ("resource_type",)
        self._transitions = Counter(
            "exo_resource_transitions",
            "State transitions",
            (*kind, "from_state", "to_state"),
            registry=registry,
        )
        self._hooks = Histogram(
            "exo_resource_hook_seconds",
            "Duration of initialize, cleanup and health_check hooks",
            (*kind, "hook", "outcome"),
            buckets=SECONDS,
            registry=registry,
        )
        self._restarts = Counter(
            "exo_resource_restarts", "Successful recoveries", kind, registry=registry
        )
        self._tasks_started = Counter(
            "exo_tasks_started", "Background tasks started", ("owner",), registry=registry
        )
        self._tasks_ended = Counter(
            "exo_tasks_ended",
            "Background tasks ended, by outcome",
            ("owner", "outcome"),
            registry=registry,
        )
        self._tasks_running = Gauge(
            "exo_tasks_running", "Background tasks running", ("owner",), registry=registry
        )
        self._states = ResourceStates()
        registry.register(self._states)
        self._remove: Callable[[], None] = add_global_listener(self.count)

    def count(self, event: LifecycleEvent) -> None:
        """Listen to one event."""
        match event:
            case StateChange():
                self._transitions.labels(
                    event.resource_type, event.old.value, event.new.value
                ).inc()
            case HookRun():
                self._hooks.labels(event.resource_type, event.hook, event.outcome).observe(
                    event.seconds
                )
            case Recovered():
                self._restarts.labels(event.resource_type).inc()
            case TaskStarted():
                self._tasks_started.labels(event.owner).inc()
                self._tasks_running.labels(event.owner).inc()
            case TaskEnded():
                self._tasks_ended.labels(event.owner, event.outcome).inc()
                self._tasks_running.labels(event.owner).dec()

    def close(self) -> None:
        """Stop counting. The registry keeps the counts so far, but no states."""
        self._remove()
        self.registry.unregister(self._states)


_installed: Final[WeakKeyDictionary[CollectorRegistry, LifecycleMetrics]] = WeakKeyDictionary()


def install(registry: CollectorRegistry = REGISTRY) -> LifecycleMetrics:
    """Count the lifecycle's events on `registry` from now on. Returns the same object each time."""
    if registry not in _installed:
        _installed[registry] = LifecycleMetrics(registry)
    return _installed[registry]


def render(accept: str = "", registry: CollectorRegistry = REGISTRY) -> tuple[bytes, str]:
    """The body of `/metrics` and its content type, in a format that the `Accept` header allows."""
    install(registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
