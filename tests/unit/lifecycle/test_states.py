"""Transitions, listeners, `wait_for`, statistics, the registry, and invalid arguments."""

from __future__ import annotations

import ast
import asyncio
import gc
import itertools
import time
from pathlib import Path
from typing import Any

import pytest
from specimens import Specimen

import exo.lifecycle
from exo.lifecycle import (
    TRANSITIONS,
    AsyncResource,
    IllegalTransition,
    ResourceError,
    ResourceInitializationError,
    ResourceState,
    ResourceStatistics,
    ResourceTimeout,
    StateChange,
    add_global_listener,
    live_resources,
)
from exo.lifecycle.events import HookRun, LifecycleEvent, Recovered, TaskEnded, TaskStarted
from exo.lifecycle.states import StateMachine

S = ResourceState

EXPECTED = {
    S.UNINITIALIZED: {S.INITIALIZING, S.CLOSED},
    S.INITIALIZING: {S.READY, S.ERROR, S.CLOSING},
    S.READY: {S.DEGRADED, S.ERROR, S.CLOSING},
    S.DEGRADED: {S.READY, S.ERROR, S.CLOSING},
    S.ERROR: {S.INITIALIZING, S.CLOSING},
    S.CLOSING: {S.CLOSED},
    S.CLOSED: {S.INITIALIZING},
}


def test_the_table_is_that_of_the_contract():
    assert {old: set(new) for old, new in TRANSITIONS.items()} == EXPECTED
    with pytest.raises(TypeError):
        TRANSITIONS[S.READY] = frozenset()  # type: ignore[index]


@pytest.mark.parametrize(
    ("old", "new"), list(itertools.product(S, S)), ids=lambda state: state.name
)
def test_every_move_is_as_the_table_says_and_an_illegal_one_changes_nothing(
    old: ResourceState, new: ResourceState
):
    machine = StateMachine("r1", "thing")
    machine.state = old
    if new in EXPECTED[old]:
        machine.move(new, "because")
        assert machine.state is new
        return
    since = machine.since
    with pytest.raises(
        IllegalTransition, match=f"thing 'r1' cannot go from {old.name} to {new.name}"
    ) as refused:
        machine.move(new, "because")
    assert (machine.state, machine.since) == (old, since)
    assert (refused.value.resource_id, refused.value.state) == ("r1", old)


def test_only_the_machine_assigns_a_state():
    folder = Path(exo.lifecycle.__file__).parent
    assigned = []
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            assigned += [
                path.name
                for t in targets
                if isinstance(t, ast.Attribute) and t.attr in ("state", "_state")
            ]
    # errors.py keeps the state in which an error was raised. The machine in states.py assigns it
    # when it is made and when it moves.
    assert sorted(assigned) == ["errors.py", "states.py", "states.py"]


async def test_listeners_hear_each_change_in_order_after_it_happened():
    part = Specimen()
    seen: list[tuple[str, StateChange, ResourceState]] = []
    part.add_listener(lambda change: seen.append(("first", change, part.state)))
    remove = part.add_listener(lambda change: seen.append(("second", change, part.state)))
    before = time.monotonic()
    await part.initialize()
    remove()
    remove()
    await part.cleanup()
    assert [who for who, _, _ in seen] == ["first", "second", "first", "second", "first", "first"]
    assert all(change.new is state for _, change, state in seen)
    change = seen[0][1]
    assert (change.resource_id, change.resource_type, change.old, change.new) == (
        "s1",
        "specimen",
        S.UNINITIALIZED,
        S.INITIALIZING,
    )
    assert change.reason
    assert before <= change.at <= time.monotonic()


async def test_a_listener_that_raises_is_logged_and_breaks_nothing(
    caplog: pytest.LogCaptureFixture,
):
    part = Specimen()
    heard: list[StateChange] = []
    part.add_listener(lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
    part.add_listener(heard.append)
    await part.initialize()
    assert len(heard) == 2
    assert "a listener of specimen 's1' failed" in caplog.text


async def test_global_listeners_hear_of_everything(caplog: pytest.LogCaptureFixture):
    events: list[LifecycleEvent] = []
    remove_broken = add_global_listener(lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
    remove = add_global_listener(events.append)
    part = Specimen(failure_threshold=1)
    await part.initialize()
    part._task_manager.start_task("t", asyncio.Event().wait)
    part.healthy = False
    await part.check_health()
    await part.recover()
    await part.cleanup()
    remove()
    remove_broken()
    await part.initialize()
    assert {type(event) for event in events} == {
        StateChange,
        HookRun,
        TaskStarted,
        TaskEnded,
        Recovered,
    }
    hooks = [event.hook for event in events if isinstance(event, HookRun)]
    assert hooks == ["initialize", "health_check", "cleanup", "initialize", "cleanup"]
    assert "a global lifecycle listener failed" in caplog.text


async def test_wait_for_returns_the_state_it_saw_even_a_brief_one():
    part = Specimen()
    waiting = asyncio.create_task(part.wait_for(S.INITIALIZING, S.ERROR))
    await asyncio.sleep(0)
    await part.initialize()
    assert await waiting is S.INITIALIZING
    assert await part.wait_for(S.READY) is S.READY


@pytest.mark.virtual_clock
async def test_wait_for_gives_up_after_its_timeout_and_leaves_nothing_behind():
    part = Specimen()
    with pytest.raises(ResourceTimeout, match="READY"):
        await part.wait_for(S.READY, timeout=0.01)
    assert part._state_machine._waiters == ()
    for bad in ((), ("READY",)):
        with pytest.raises(TypeError, match="ResourceState"):
            await part.wait_for(*bad)  # type: ignore[arg-type]


async def test_statistics_count_what_happened():
    part = Specimen()
    assert part.statistics() == ResourceStatistics()
    part.fails["initialize"] = [OSError()]
    with pytest.raises(ResourceInitializationError):
        await part.initialize()
    await part.recover()
    await part.check_health()
    part.healthy = False
    await part.check_health()
    await part.cleanup()
    statistics = part.statistics()
    assert (statistics.initializations, statistics.initialize_failures, statistics.recoveries) == (
        2,
        1,
        1,
    )
    assert (statistics.cleanups, statistics.cleanup_failures) == (2, 0)
    assert (
        statistics.health_checks,
        statistics.health_failures,
        statistics.consecutive_health_failures,
    ) == (2, 1, 1)
    for seconds in (
        statistics.last_initialize_seconds,
        statistics.last_cleanup_seconds,
        statistics.last_health_check_seconds,
    ):
        assert seconds is not None
        assert seconds >= 0
    with pytest.raises(AttributeError):
        statistics.cleanups = 0  # type: ignore[misc]


async def test_state_since_and_reason_follow_the_state():
    part = Specimen()
    before = part.state_since
    await part.initialize()
    assert before <= part.state_since <= time.monotonic()
    assert part.state_reason == "initialized"


def test_defaults_come_from_the_class_and_ids_differ():
    class Thing(AsyncResource):
        RESOURCE_TYPE = "thing"

    one, two = Thing(), Thing()
    assert one.resource_id != two.resource_id
    assert (one.resource_type, one.display_name) == ("thing", one.resource_id)
    named = Thing(resource_id="x", resource_type="other", display_name="The X")
    assert (named.resource_id, named.resource_type, named.display_name) == ("x", "other", "The X")
    assert repr(named) == "Thing(other 'x', UNINITIALIZED)"
    assert not hasattr(named, "id"), "a subclass may have an `id` of its own"


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"resource_id": ""}, ValueError),
        ({"resource_id": "  "}, ValueError),
        ({"resource_id": 7}, TypeError),
        ({"resource_type": ""}, ValueError),
        ({"resource_type": object()}, TypeError),
        ({"display_name": 1.5}, TypeError),
        ({"initialize_timeout": -1}, ValueError),
        ({"initialize_timeout": 0}, ValueError),
        ({"initialize_timeout": "30"}, TypeError),
        ({"initialize_timeout": float("nan")}, ValueError),
        ({"cleanup_timeout": -0.5}, ValueError),
        ({"cleanup_timeout": None}, TypeError),
        ({"health_check_timeout": True}, TypeError),
        ({"failure_threshold": 0}, ValueError),
        ({"failure_threshold": 1.5}, TypeError),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_by_resource_and_field(
    settings: dict[str, Any], error: type[Exception]
):
    class Thing(AsyncResource):
        pass

    (field,) = settings
    with pytest.raises(error, match=field) as refused:
        Thing(**{"resource_id": "my-thing", **settings})
    if field != "resource_id":
        assert "'my-thing'" in str(refused.value)


@pytest.mark.parametrize("timeout", [-1, "1", float("nan")])
async def test_bad_timeouts_of_calls_are_refused_before_anything_happens(timeout: Any):
    part = Specimen()
    for call in (part.initialize(timeout=timeout), part.wait_for(S.READY, timeout=timeout)):
        with pytest.raises((TypeError, ValueError), match=r"'s1'.*timeout"):
            await call
    assert part.state is S.UNINITIALIZED


def test_every_error_is_a_resource_error_and_a_timeout_is_a_timeout_error():
    names = [
        name for name in exo.lifecycle.__all__ if isinstance(getattr(exo.lifecycle, name), type)
    ]
    errors = [kind for name in names if issubclass(kind := getattr(exo.lifecycle, name), Exception)]
    assert len(errors) >= 7
    for kind in errors:
        error = kind("what", resource_id="r1", state=S.READY)
        assert isinstance(error, ResourceError)
        assert (str(error), error.resource_id, error.state) == ("what", "r1", S.READY)
    assert issubclass(ResourceTimeout, TimeoutError)


def test_live_resources_are_held_weakly_and_listed_by_type_oldest_first():
    class Rare(AsyncResource):
        RESOURCE_TYPE = "rare"

    kept = [Rare(resource_id=f"r{i}") for i in range(3)]
    assert [r.resource_id for r in live_resources("rare")] == ["r0", "r1", "r2"]
    assert set(kept) <= set(live_resources())
    del kept[1]
    gc.collect()
    assert [r.resource_id for r in live_resources("rare")] == ["r0", "r2"]


def test_a_health_hook_under_its_old_name_causes_a_warning_at_class_creation():
    with pytest.warns(
        UserWarning,
        match=r"Old\._check_health is no hook of AsyncResource: name it _do_health_check",
    ):

        class Old(AsyncResource):
            async def _check_health(self) -> bool:
                return False
