"""What `/livez`, `/readyz` and `/startupz` answer, from the latest report of the `HealthMonitor`.

Only the node knows two things more: why it is not ready yet ("loading model 43 %"), and that it
drains. No check runs here: an answer takes microseconds even if a resource hangs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exo.api.backend import NodeView
from exo.lifecycle.degradations import degradations
from exo.utils.health_check import HealthMonitor, HealthReport, ResourceHealth


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe's answer; `failing` maps a resource's name to the reason."""

    ok: bool
    failing: Mapping[str, str]

    def body(self) -> dict[str, Any]:
        return {"status": "ok" if self.ok else "unavailable", "failing": dict(self.failing)}


def drain_reason(view: NodeView) -> str | None:
    """Why a draining node is not ready, in its own words; None unless it drains."""
    return (view.describe_progress() or "draining") if view.is_draining else None


class HealthProbes:
    """The answers of the three probes. A failing one always says why."""

    def __init__(self, monitor: HealthMonitor, view: NodeView) -> None:
        self._monitor = monitor
        self._view = view

    def live(self) -> Probe:
        report = self._monitor.report()
        return Probe(report.is_live, {} if report.is_live else _some(report.reasons_live))

    def started(self) -> Probe:
        report = self._monitor.report()
        if report.is_started:
            return Probe(True, {})
        return Probe(False, self._with_progress(report.reasons_started))

    def ready(self) -> Probe:
        report = self._monitor.report()
        if report.is_ready and not self._view.is_draining:
            return Probe(True, {})
        return Probe(False, self._with_progress(report.reasons_ready))

    def resources(self) -> dict[str, Any]:
        return describe(self._monitor.report())

    def _with_progress(self, reasons: Mapping[str, str]) -> dict[str, str]:
        progress = self._view.describe_progress()
        return _some({**reasons, **({"node": progress} if progress else {})})


def _some(reasons: Mapping[str, str]) -> dict[str, str]:
    return dict(reasons) or {"node": "not ready yet"}


def describe(report: HealthReport) -> dict[str, Any]:
    return {name: _describe(health) for name, health in report.resources.items()}


def describe_degradations() -> list[dict[str, Any]]:
    """What runs on a fallback in this process, and why, oldest first."""
    now = time.monotonic()
    return [
        {
            "name": made.name,
            "to": made.to,
            "reason": made.reason,
            "resource_id": made.resource_id,
            "age_seconds": round(now - made.since, 1),
        }
        for made in degradations()
    ]


def _describe(health: ResourceHealth) -> dict[str, Any]:
    return {
        "type": health.resource_type,
        "state": health.state.name.lower(),
        "healthy": health.healthy,
        "required": health.required,
        "reason": health.reason,
        "last_error": health.last_error,
        "latency_ms": None
        if health.latency_seconds is None
        else round(health.latency_seconds * 1000, 3),
        "checked_ago_seconds": None
        if health.checked_ago_seconds is None
        else round(health.checked_ago_seconds, 3),
    }
