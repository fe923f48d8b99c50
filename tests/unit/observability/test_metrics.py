"""Prometheus metrics of the lifecycle, each test on a registry of its own."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from exo.lifecycle import AsyncResource, ResourceInitializationError
from exo.observability.metrics import LifecycleMetrics, install, render


class Part(AsyncResource):
    RESOURCE_TYPE = "metered"
    fails = False

    async def _do_initialize(self) -> None:
        if self.fails:
            raise OSError("no")


@pytest.fixture
def metrics() -> Iterator[LifecycleMetrics]:
    made = install(CollectorRegistry())
    yield made
    made.close()


def value(metrics: LifecycleMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


async def test_the_state_of_each_live_resource_is_shown_and_forgotten_with_it(
    metrics: LifecycleMetrics,
):
    def state(which: str) -> float | None:
        return value(
            metrics, "exo_resource_state", resource_id="m1", resource_type="metered", state=which
        )

    part = Part(resource_id="m1")
    assert state("uninitialized") == 1
    await part.initialize()
    assert (state("ready"), state("uninitialized")) == (1, 0)
    assert value(metrics, "exo_resources", type="metered", state="ready") == 1
    await part.cleanup()
    del part
    gc.collect()
    assert state("ready") is None


async def test_transitions_hooks_and_restarts_are_counted(metrics: LifecycleMetrics):
    part = Part(resource_id="m2")
    part.fails = True
    with pytest.raises(ResourceInitializationError):
        await part.initialize()
    part.fails = False
    await part.recover()
    await part.check_health()
    await part.cleanup()
    kind = {"resource_type": "metered"}
    assert (
        value(
            metrics,
            "exo_resource_transitions_total",
            **kind,
            from_state="initializing",
            to_state="error",
        )
        == 1
    )
    assert (
        value(
            metrics,
            "exo_resource_transitions_total",
            **kind,
            from_state="initializing",
            to_state="ready",
        )
        == 1
    )
    assert (
        value(
            metrics, "exo_resource_hook_seconds_count", **kind, hook="initialize", outcome="failed"
        )
        == 1
    )
    assert (
        value(metrics, "exo_resource_hook_seconds_count", **kind, hook="cleanup", outcome="ok") == 2
    )
    assert (
        value(metrics, "exo_resource_hook_seconds_count", **kind, hook="health_check", outcome="ok")
        == 1
    )
    assert value(metrics, "exo_resource_restarts_total", **kind) == 1


async def test_tasks_are_counted_by_how_they_end(metrics: LifecycleMetrics):
    async def boom() -> None:
        raise RuntimeError

    async with Part(resource_id="m3") as part:
        manager = part._task_manager
        manager.start_task("forever", asyncio.Event().wait)
        failing = manager.start_task("boom", boom)
        with pytest.raises(RuntimeError):
            await failing.wait()
        await asyncio.sleep(0)
        assert value(metrics, "exo_tasks_running", owner="m3") == 1
    assert value(metrics, "exo_tasks_running", owner="m3") == 0
    assert value(metrics, "exo_tasks_started_total", owner="m3") == 2
    assert value(metrics, "exo_tasks_ended_total", owner="m3", outcome="failed") == 1
    assert value(metrics, "exo_tasks_ended_total", owner="m3", outcome="cancelled") == 1


async def test_rendering_follows_the_accept_header(metrics: LifecycleMetrics):
    async with Part(resource_id="m4"):
        body, content_type = render("", metrics.registry)
        assert (
            b'exo_resource_state{resource_id="m4",resource_type="metered",state="ready"} 1.0'
            in body
        )
        assert content_type.startswith("text/plain")
        body, content_type = render("application/openmetrics-text; version=1.0.0", metrics.registry)
        assert body.endswith(b"# EOF\n")
        assert "openmetrics" in content_type


def test_installing_twice_counts_once(metrics: LifecycleMetrics):
    assert install(metrics.registry) is metrics
