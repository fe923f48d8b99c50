"""`ResourceGroup`: order, roll-back, health, invalid graphs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from specimens import Specimen, turns

from exo.lifecycle import (
    AsyncResource,
    ResourceError,
    ResourceGroup,
    ResourceInitializationError,
    ResourceState,
    ResourceUnavailable,
)

pytestmark = pytest.mark.virtual_clock

S = ResourceState


class Recorder:
    """Makes members that record their starts and stops, when complete, as `+a` and `-a`."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def member(self, name: str, **settings: Any) -> Specimen:
        events = self.events

        class Member(Specimen):
            async def _do_initialize(self) -> None:
                await super()._do_initialize()
                events.append(f"+{name}")

            async def _do_cleanup(self) -> None:
                events.append(f"-{name}")
                await super()._do_cleanup()

        return Member(name, **settings)


def diamond(recorder: Recorder) -> ResourceGroup:
    """top needs left and right, which both need base. Not added in start order."""
    group = ResourceGroup(resource_id="g")
    group.add(recorder.member("top"), depends_on=["left", "right"])
    group.add(recorder.member("left"), depends_on=["base"])
    group.add(recorder.member("right"), depends_on=["base"])
    group.add(recorder.member("base"))
    return group


async def test_members_start_after_what_they_need_and_close_in_strict_reverse():
    recorder = Recorder()
    group = diamond(recorder)
    assert [member.resource_id for member in group] == ["base", "left", "right", "top"]
    await group.initialize()
    assert recorder.events == ["+base", "+left", "+right", "+top"]
    recorder.events.clear()
    await group.cleanup()
    assert recorder.events == ["-top", "-right", "-left", "-base"]
    assert all(member.state is S.CLOSED for member in group)


async def test_a_group_starts_again_after_it_was_closed():
    recorder = Recorder()
    group = diamond(recorder)
    for _ in range(2):
        await group.initialize()
        await group.cleanup()
    assert recorder.events.count("+top") == 2
    assert len(group) == 4


async def test_one_level_starts_in_parallel():
    recorder = Recorder()
    group = diamond(recorder)
    left, right = group.get("left"), group.get("right")
    assert isinstance(left, Specimen)
    assert isinstance(right, Specimen)
    left.gates["initialize"].clear()
    starting = asyncio.create_task(group.initialize())
    await right.wait_for(S.READY, timeout=5)
    assert left.state is S.INITIALIZING
    assert group.get("top").state is S.UNINITIALIZED
    left.gates["initialize"].set()
    await starting


async def test_a_failed_start_closes_what_was_started_in_reverse_and_leaves_the_rest_untouched():
    recorder = Recorder()
    group = diamond(recorder)
    right = group.get("right")
    assert isinstance(right, Specimen)
    right.fails["initialize"] = OSError("port taken")
    with pytest.raises(ResourceInitializationError, match="right") as failed:
        await group.initialize()
    cause = failed.value.__cause__
    assert isinstance(cause, ExceptionGroup)
    assert [type(error) for error in cause.exceptions] == [ResourceInitializationError]
    assert "port taken" in str(cause.exceptions[0])
    assert recorder.events == ["+base", "+left", "-right", "-left", "-base"]
    assert group.state is S.ERROR
    assert group.get("top").state is S.UNINITIALIZED
    right.fails.clear()
    assert await group.initialize()


async def test_a_failure_cancels_its_slow_siblings_and_leaves_none_running():
    recorder = Recorder()
    group = diamond(recorder)
    left, right = group.get("left"), group.get("right")
    assert isinstance(left, Specimen)
    assert isinstance(right, Specimen)
    left.gates["initialize"].clear()
    right.fails["initialize"] = OSError("no")
    with pytest.raises(ResourceInitializationError):
        await asyncio.wait_for(group.initialize(), 5)
    await turns(20)
    assert [member.state for member in group] == [S.CLOSED, S.CLOSED, S.CLOSED, S.UNINITIALIZED]


async def test_all_failures_of_a_level_are_reported():
    group = ResourceGroup()
    for name in "ab":
        member = Specimen(name)
        member.fails["initialize"] = OSError(name)
        group.add(member)
    with pytest.raises(ResourceInitializationError, match="a, b") as failed:
        await group.initialize()
    assert isinstance(failed.value.__cause__, ExceptionGroup)
    assert len(failed.value.__cause__.exceptions) == 2


async def test_an_optional_member_that_fails_to_start_is_only_a_degradation():
    group = ResourceGroup(failure_threshold=2)
    optional = Specimen("optional")
    optional.fails["initialize"] = OSError("no")
    group.add(Specimen("needed"))
    group.add(optional, required=False)
    assert await group.initialize()
    for _ in range(3):
        assert not await group.check_health()
    assert group.state is S.DEGRADED
    assert "optional" in str(group.last_error)
    optional.fails.clear()
    await optional.recover()
    assert await group.check_health()
    await group.cleanup()


async def test_health_is_all_required_members_and_names_the_unhealthy():
    group = ResourceGroup(failure_threshold=2)
    a, b = Specimen("a"), Specimen("b")
    group.add(a)
    group.add(b)
    await group.initialize()
    assert await group.check_health()
    b.healthy = False
    assert not await group.check_health()
    assert "b (DEGRADED)" in str(group.last_error)
    assert not await group.check_health()
    assert group.state is S.ERROR
    await group.cleanup()


async def test_cleanup_attempts_every_member_and_collects_the_errors():
    recorder = Recorder()
    group = diamond(recorder)
    await group.initialize()
    for name in ("top", "left"):
        member = group.get(name)
        assert isinstance(member, Specimen)
        member.fails["cleanup"] = OSError(name)
    with pytest.raises(ResourceError) as failed:
        await group.cleanup()
    assert isinstance(failed.value.__cause__, ExceptionGroup)
    assert [str(error) for error in failed.value.__cause__.exceptions] == ["top", "left"]
    assert recorder.events[4:] == ["-top", "-right", "-left", "-base"]
    assert group.state is S.CLOSED


async def test_a_member_that_hangs_at_the_end_does_not_keep_the_others_from_closing():
    group = ResourceGroup(cleanup_timeout=0.5)
    first, hanging = Specimen("first"), Specimen("hanging", cleanup_timeout=0.8)
    group.add(first)
    group.add(hanging, depends_on=["first"])
    await group.initialize()
    hanging.gates["cleanup"].clear()
    with pytest.raises(ResourceError) as failed:
        await group.cleanup()
    assert "hanging" in repr(failed.value.__cause__)
    assert await first.wait_for(S.CLOSED, timeout=5)
    assert await hanging.wait_for(S.CLOSED, timeout=5)


async def test_when_the_groups_own_cleanup_is_cut_off_the_rest_is_still_attempted():
    group = ResourceGroup()
    members = [Specimen(name) for name in "abc"]
    for member in members:
        group.add(member)
    await group.initialize()
    members[2].gates["cleanup"].clear()
    hook = asyncio.create_task(group._do_cleanup())
    await members[2].inside["cleanup"].wait()
    hook.cancel()
    await asyncio.wait({hook})
    for member in members[:2]:
        assert await member.wait_for(S.CLOSED, timeout=5)
    members[2].gates["cleanup"].set()
    await members[2].cleanup()
    await group.cleanup()


async def test_timeouts_are_by_default_long_enough_for_all_members():
    group = ResourceGroup()
    for i in range(3):
        group.add(
            Specimen(f"m{i}", initialize_timeout=100, cleanup_timeout=50, health_check_timeout=40)
        )
    assert group.initialize_timeout > 300
    assert group.cleanup_timeout > 150
    assert group.health_check_timeout > 40
    assert ResourceGroup(cleanup_timeout=7).cleanup_timeout == 7


async def test_a_member_added_while_the_group_is_up_starts_with_sync():
    recorder = Recorder()
    group = ResourceGroup(resource_id="g")
    group.add(recorder.member("a"))
    with pytest.raises(ResourceUnavailable):
        await group.sync()
    await group.initialize()
    group.add(recorder.member("c"), depends_on=["b"])
    group.add(recorder.member("b"), depends_on=["a"])
    assert group.get("b").state is S.UNINITIALIZED
    await group.sync()
    assert recorder.events == ["+a", "+b", "+c"]
    await group.cleanup()
    assert recorder.events[3:] == ["-c", "-b", "-a"]


async def test_removing_hands_the_member_back_as_it_is():
    group = ResourceGroup(resource_id="g")
    base, top = Specimen("base"), Specimen("top")
    group.add(base)
    group.add(top, depends_on=[base])
    await group.initialize()
    with pytest.raises(ValueError, match="cannot remove 'base': needed by top"):
        group.remove("base")
    assert group.remove(top) is top
    assert top.state is S.READY
    assert "top" not in group
    await group.cleanup()
    assert top.state is S.READY
    await top.cleanup()


def test_members_are_listed_in_start_order_and_found_by_name():
    group = diamond(Recorder())
    assert [part.resource_id for part in group] == ["base", "left", "right", "top"]
    assert "left" in group
    with pytest.raises(KeyError, match=r"no member 'x'; members: base, left, right, top"):
        group.get("x")


def test_a_cycle_is_refused_and_named_and_changes_nothing():
    group = ResourceGroup(resource_id="g")
    group.add(Specimen("a"), depends_on=["b"])
    group.add(Specimen("b"), depends_on=["c"])
    with pytest.raises(
        ValueError, match=r"group 'g' has a cycle of dependencies: \w -> \w -> \w -> \w"
    ) as refused:
        group.add(Specimen("c"), depends_on=["a"])
    assert {*"abc"} <= {*str(refused.value)}
    assert "c" not in group
    with pytest.raises(ValueError, match="d -> d"):
        group.add(Specimen("d"), depends_on=["d"])


async def test_an_unknown_dependency_is_named_at_initialize():
    group = ResourceGroup(resource_id="g")
    a = Specimen("a")
    group.add(a, depends_on=["ghost"])
    with pytest.raises(ResourceInitializationError, match="'a' depends on unknown 'ghost'"):
        await group.initialize()
    assert a.state is S.UNINITIALIZED


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda g: g.add(Specimen("a")), "has a member 'a' already"),
        (lambda g: g.add(g.get("a"), name="again"), "cannot hold 'a' twice"),
        (lambda g: g.add(g), "nor itself"),
        (lambda g: g.add("a"), "must be an AsyncResource"),
        (lambda g: g.add(Specimen("b"), depends_on="a"), "must be a list of names"),
        (lambda g: g.add(Specimen("b"), depends_on=[Specimen("c")]), "does not hold"),
        (lambda g: g.add(Specimen("b"), name=""), "name must not be empty"),
        (lambda g: g.remove("zz"), "has no member 'zz'"),
        (lambda g: ResourceGroup(cleanup_timeout=-1), "cleanup_timeout"),
    ],
)
def test_bad_input_is_refused_by_name(add: Any, message: str):
    group = ResourceGroup(resource_id="g")
    group.add(Specimen("a"))
    with pytest.raises((TypeError, ValueError), match=message):
        add(group)
    assert [member.resource_id for member in group] == ["a"]


async def test_groups_nest():
    inner, outer = ResourceGroup(resource_id="inner"), ResourceGroup(resource_id="outer")
    leaf = Specimen("leaf")
    inner.add(leaf)
    outer.add(Specimen("first"))
    outer.add(inner, depends_on=["first"])
    async with outer:
        assert leaf.state is S.READY
        assert await outer.check_health()
    assert leaf.state is S.CLOSED


async def test_a_slow_member_blocks_neither_look_ups_nor_reports():
    group = ResourceGroup()
    slow = Specimen("slow")
    slow.gates["initialize"].clear()
    group.add(slow)
    starting = asyncio.create_task(group.initialize())
    await slow.inside["initialize"].wait()
    assert group.get("slow") is slow
    assert await group.check_health() is False
    slow.gates["initialize"].set()
    await starting


async def test_an_async_resource_of_any_kind_may_be_a_member():
    class Other(AsyncResource):
        pass

    async with ResourceGroup() as group:
        group.add(Other(resource_id="o"))
        await group.sync()
        assert group.get("o").is_healthy
