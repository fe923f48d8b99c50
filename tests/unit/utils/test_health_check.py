"""`HealthMonitor`: when checks run, what the views say, and that no probe waits for a check."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtual_clock import VirtualClock

from exo.lifecycle import AsyncResource, ResourceDegraded, ResourceState
from exo.lifecycle.faults import use_folder
from exo.utils.health_check import HealthMonitor, HealthReport

pytestmark = pytest.mark.virtual_clock

FAST = 0.01


class Part(AsyncResource):
    """A resource whose health the test sets."""

    RESOURCE_TYPE = "part"

    def __init__(self, resource_id: str = "part", **settings: float) -> None:
        super().__init__(
            resource_id=resource_id, health_check_timeout=settings.pop("health_check_timeout", 1.0)
        )
        self.healthy: bool | BaseException = True
        self.checks = 0
        self.running = 0
        self.most_running = 0
        self.hang = asyncio.Event()
        self.hang.set()

    async def _do_health_check(self) -> bool:
        self.checks += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.hang.wait()
        finally:
            self.running -= 1
        if isinstance(self.healthy, BaseException):
            raise self.healthy
        return self.healthy


async def until(condition: object, timeout: float = 5.0) -> None:
    """Wait until the condition holds."""
    assert callable(condition)
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110  # the condition may be anything
            await asyncio.sleep(0.001)


async def test_a_healthy_part_makes_all_three_views_true():
    async with Part() as part, HealthMonitor() as monitor:
        monitor.register(part, interval=FAST)
        await until(lambda: part.checks >= 3)
        report = monitor.report()
        assert (report.is_live, report.is_started, report.is_ready) == (True, True, True)
        health = report.resources["part"]
        assert (health.state, health.healthy, health.reason, health.last_error) == (
            ResourceState.READY,
            True,
            None,
            None,
        )
        assert health.latency_seconds is not None
        assert health.checked_ago_seconds is not None
        assert health.required


async def test_a_part_that_never_came_up_holds_up_the_start_by_name():
    part = Part()
    async with HealthMonitor() as monitor:
        monitor.register(part, interval=FAST)
        report = monitor.report()
        assert report.is_live
        assert report.reasons_started == {"part": "uninitialized"}
        assert report.reasons_ready == {"part": "uninitialized"}
        await part.initialize()
        assert monitor.report().is_started
        assert monitor.report().is_ready
        await part.cleanup()
        assert monitor.report().is_started, "started stays true"
        assert monitor.report().reasons_ready == {"part": "closed: cleaned up"}


async def test_an_optional_part_never_holds_up_start_or_readiness():
    part = Part()
    async with HealthMonitor() as monitor:
        monitor.register(part, interval=FAST, required=False)
        assert monitor.report().is_started
        assert monitor.report().is_ready
        assert not monitor.report().resources["part"].healthy


async def test_a_failing_check_makes_the_node_not_ready_with_the_reason_and_comes_back():
    async with Part() as part, HealthMonitor() as monitor:
        monitor.register(part, interval=FAST)
        part.healthy = RuntimeError("no disk")
        await until(lambda: part.state is ResourceState.DEGRADED)
        report = monitor.report()
        assert not report.is_ready
        assert "no disk" in report.reasons_ready["part"]
        assert report.is_live
        assert report.is_started
        part.healthy = True
        await until(lambda: monitor.report().is_ready)


async def test_a_declared_degradation_stays_ready_and_is_shown():
    async with Part() as part, HealthMonitor() as monitor:
        monitor.register(part, interval=FAST)
        part.healthy = ResourceDegraded("on the slow engine")
        await until(lambda: part.checks > 5)
        report = monitor.report()
        assert part.state is ResourceState.DEGRADED
        assert report.is_ready
        assert not report.resources["part"].healthy
        assert "slow engine" in (report.resources["part"].reason or "")


async def test_recovery_brings_a_part_back_from_error_and_ready_only_after_a_passed_check(
    monkeypatch,
):
    monkeypatch.setattr("exo.utils.health_check.RECOVER_BASE", 0.01)
    async with Part() as part, HealthMonitor() as monitor:
        seen: list[tuple[bool, bool | BaseException]] = []
        monitor.register(part, interval=FAST, recover=True)
        part.healthy = False
        await part.wait_for(ResourceState.ERROR, timeout=5)
        monitor.subscribe(lambda report: seen.append((report.is_ready, part.healthy)))
        await part.wait_for(ResourceState.READY, timeout=5)
        await until(lambda: part.state is ResourceState.ERROR)
        part.healthy = True
        await until(lambda: monitor.report().is_ready)
        assert not any(ready for ready, healthy in seen if healthy is False)
        assert part.statistics().recoveries >= 2


async def test_without_recovery_a_part_in_error_is_left_alone():
    async with Part() as part, HealthMonitor() as monitor:
        monitor.register(part, interval=FAST)
        part.healthy = False
        await part.wait_for(ResourceState.ERROR, timeout=5)
        checks = part.checks
        await asyncio.sleep(5 * FAST)
        assert part.state is ResourceState.ERROR
        assert part.checks == checks


async def test_a_hung_check_delays_no_report_and_is_never_doubled():
    async with Part(health_check_timeout=0.5) as part, HealthMonitor() as monitor:
        part.hang.clear()
        monitor.register(part, interval=FAST)
        await until(lambda: part.running == 1)
        started = time.perf_counter()
        for _ in range(1000):
            monitor.report()
        assert time.perf_counter() - started < 1.0
        await until(lambda: part.checks >= 2)
        assert part.most_running == 1
        assert not monitor.report().is_ready
        part.hang.set()


async def test_results_too_old_to_trust_make_the_node_not_ready(virtual_clock: VirtualClock):
    async with Part() as part, HealthMonitor() as monitor:
        monitor.register(part, interval=FAST)
        await until(lambda: part.checks >= 1)
        assert monitor.report().is_ready
        virtual_clock.advance(60)
        assert "not checked for 60 s" in monitor.report().reasons_ready["part"]


async def test_conditions_take_part_in_readiness_by_name():
    ring: list[str] = ["waiting for node-b"]
    async with HealthMonitor() as monitor:
        remove = monitor.add_readiness("ring", lambda: ring[0] if ring else None)
        assert monitor.report().reasons_ready == {"ring": "waiting for node-b"}
        ring.clear()
        assert monitor.report().is_ready
        with pytest.raises(ValueError, match="'ring'"):
            monitor.add_readiness("ring", lambda: None)
        remove()
        monitor.add_readiness("broken", lambda: 1 / 0)  # type: ignore[arg-type,return-value]
        assert "ZeroDivisionError" in monitor.report().reasons_ready["broken"]


async def test_a_stalled_loop_is_not_live_when_asked_from_another_thread_and_alive_again_after(
    virtual_clock: VirtualClock,
):
    async with HealthMonitor(stall_seconds=0.05) as monitor:
        answers: list[HealthReport] = []

        thread = threading.Thread(target=lambda: answers.append(monitor.report()))
        # The event loop makes no progress until the thread has asked.
        virtual_clock.advance(0.2)
        thread.start()
        thread.join()
        assert "no progress" in answers[0].reasons_live["event_loop"]
        assert monitor.report().is_live


async def test_a_closed_monitor_is_live_and_started_but_not_ready():
    monitor = HealthMonitor()
    assert monitor.report().reasons_started == {"health-monitor": "uninitialized"}
    await monitor.initialize()
    await monitor.cleanup()
    report = monitor.report()
    assert (report.is_live, report.is_started, report.is_ready) == (True, True, False)


async def test_bad_registrations_name_resource_and_field():
    part = Part("p1")
    monitor = HealthMonitor()
    monitor.register(part)
    with pytest.raises(ValueError, match="'p1' is registered already"):
        monitor.register(Part("p1"))
    with pytest.raises(ValueError, match=r"'p2'.*interval"):
        monitor.register(Part("p2"), interval=-1)
    with pytest.raises(TypeError, match="AsyncResource"):
        monitor.register("p3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="itself"):
        monitor.register(monitor)


async def test_an_unregistered_part_is_checked_no_more_and_can_come_back():
    async with Part() as part, HealthMonitor() as monitor:
        monitor.register(part, interval=FAST)
        await until(lambda: part.checks >= 1)
        assert monitor.unregister(part)
        assert not monitor.unregister(part)
        await until(lambda: part.running == 0)
        checks = part.checks
        await asyncio.sleep(5 * FAST)
        assert part.checks == checks
        assert monitor.report().resources == {}
        monitor.register(part, interval=FAST)
        await until(lambda: part.checks > checks)


async def test_subscribers_hear_of_changes_and_history_is_kept():
    async with Part() as part, HealthMonitor() as monitor:
        ready: list[bool] = []
        remove = monitor.subscribe(lambda report: ready.append(report.is_ready))
        monitor.register(part, interval=FAST)
        part.healthy = False
        await until(lambda: False in ready)
        remove()
        heard = len(ready)
        part.healthy = True
        await until(lambda: monitor.report().is_ready)
        assert len(ready) == heard
        assert [record.healthy for record in monitor.history("part")].count(False) >= 1


async def test_a_monitor_started_again_checks_each_part_in_one_loop_only():
    async with Part() as part:
        monitor = HealthMonitor()
        monitor.register(part, interval=FAST)
        for _ in range(3):
            await monitor.initialize()
            names = [task.name for task in monitor._task_manager.tasks]
            assert sorted(names) == ["check:part", "heartbeat"]
            assert await monitor.check_health()
            await monitor.cleanup()
        assert not [task for task in asyncio.all_tasks() if "check:" in task.get_name()]


async def test_a_part_whose_check_breaks_the_contract_is_still_checked_again(
    caplog: pytest.LogCaptureFixture,
):
    class Breaking(Part):
        async def check_health(self) -> bool:
            self.checks += 1
            raise RuntimeError("not in the contract")

    async with Breaking() as part, HealthMonitor() as monitor:
        monitor.register(part, interval=FAST)
        await until(lambda: part.checks >= 3)
    assert "unforeseen" in caplog.text


async def test_a_thousand_parts_are_reported_quickly():
    parts = [Part(f"p{i}") for i in range(1000)]
    monitor = HealthMonitor()
    for part in parts:
        monitor.register(part)
        await part.initialize()
    started = time.perf_counter()
    report = monitor.report()
    assert time.perf_counter() - started < 0.5
    assert len(report.resources) == 1000
    assert all(health.healthy for health in report.resources.values())


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[Path]:
    use_folder(tmp_path)
    yield tmp_path
    use_folder(None)


async def test_a_fault_file_makes_the_named_parts_check_fail_and_its_removal_heals(faults: Path):
    async with Part("p") as part, Part("q") as other:
        (faults / "p").write_text("pulled the plug")
        assert not await part.check_health()
        assert "pulled the plug" in str(part.last_error)
        assert await other.check_health()
        (faults / "p").rename(faults / "part")
        assert not await other.check_health()
        (faults / "part").unlink()
        assert await part.check_health()
        assert part.state is ResourceState.READY
