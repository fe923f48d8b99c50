"""The order of starts and stops holds on random dependency graphs with random failures."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from exo.lifecycle import AsyncResource, ResourceError, ResourceGroup, ResourceState

S = ResourceState


@dataclass(frozen=True)
class Plan:
    """Which members need which (always lower numbers), fail to start or stop, and how long each
    takes. They are added in `order`.
    """

    needs: tuple[frozenset[int], ...]
    order: tuple[int, ...]
    fail_start: frozenset[int]
    fail_stop: frozenset[int]
    optional: frozenset[int]
    pace: tuple[int, ...]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    number = draw(st.integers(1, 9))
    subset = st.frozensets(st.integers(0, number - 1), max_size=number)
    needs = tuple(
        frozenset(draw(st.frozensets(st.integers(0, i - 1), max_size=3))) if i else frozenset()
        for i in range(number)
    )
    fails = draw(st.frozensets(st.integers(0, number - 1), max_size=2))
    return Plan(
        needs=needs,
        order=tuple(draw(st.permutations(range(number)))),
        fail_start=fails,
        fail_stop=draw(subset),
        optional=draw(subset),
        pace=tuple(draw(st.lists(st.integers(0, 3), min_size=number, max_size=number))),
    )


@dataclass
class World:
    plan: Plan
    events: list[tuple[str, int]] = field(default_factory=list)

    def group(self) -> ResourceGroup:
        world, plan = self, self.plan

        class Member(AsyncResource):
            def __init__(self, number: int) -> None:
                super().__init__(resource_id=str(number))
                self.number = number

            async def _do_initialize(self) -> None:
                world.events.append(("begin", self.number))
                for _ in range(plan.pace[self.number]):
                    await asyncio.sleep(0)
                if self.number in plan.fail_start:
                    raise OSError(f"start {self.number}")
                world.events.append(("up", self.number))

            async def _do_cleanup(self) -> None:
                for _ in range(plan.pace[self.number]):
                    await asyncio.sleep(0)
                world.events.append(("down", self.number))
                if self.number in plan.fail_stop:
                    raise OSError(f"stop {self.number}")

        group = ResourceGroup(resource_id="g")
        for number in plan.order:
            group.add(
                Member(number),
                depends_on=[str(other) for other in plan.needs[number]],
                required=number not in plan.optional,
            )
        return group

    def at(self, what: str, number: int) -> int:
        return self.events.index((what, number)) if (what, number) in self.events else -1


@given(plans())
@settings(max_examples=150, deadline=None)
def test_order_holds_on_any_graph_with_any_failures(plan: Plan):
    world = World(plan)
    asyncio.run(_live(world))


async def _live(world: World) -> None:
    plan, group = world.plan, world.group()
    must_fail = bool(plan.fail_start - plan.optional)
    try:
        await group.initialize()
        cause = None
    except ResourceError as error:
        cause = error.__cause__
    failed = isinstance(cause, ExceptionGroup)
    assert failed == must_fail
    assert group.state is (S.ERROR if failed else S.READY)
    for number, needs in enumerate(plan.needs):
        begun = world.at("begin", number)
        for need in needs:
            if begun >= 0 and need not in plan.fail_start:
                assert 0 <= world.at("up", need) < begun, "started before what it needs was up"
    if failed:
        assert all(member.state in (S.CLOSED, S.UNINITIALIZED) for member in group), (
            "nothing is left open"
        )
    try:
        await group.cleanup()
    except ResourceError:
        assert plan.fail_stop
    assert group.state is S.CLOSED
    starts = [number for what, number in world.events if what == "begin"]
    stops = [number for what, number in world.events if what == "down"]
    assert sorted(starts) == sorted(stops), "each start begun is undone exactly once"
    for number, needs in enumerate(plan.needs):
        for need in needs:
            if world.at("up", number) >= 0 and world.at("up", need) >= 0:
                assert world.at("down", number) < world.at("down", need), (
                    "closed before what needs it"
                )
    assert asyncio.all_tasks() == {asyncio.current_task()}
