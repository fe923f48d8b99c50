"""`ensure_ready` in every state, and re-entrant calls."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from specimens import Specimen, turns

from exo.lifecycle import (
    AsyncResource,
    ReentrantCall,
    ResourceInitializationError,
    ResourceState,
    ResourceUnavailable,
)

S = ResourceState


async def in_error(part: Specimen) -> None:
    """Bring it to ERROR by failed health checks; everything stays open."""
    await part.initialize()
    part.healthy = False
    for _ in range(3):
        await part.check_health()
    part.healthy = True
    assert part.state is S.ERROR


async def test_uninitialized_initializes_lazily():
    part = Specimen()
    await asyncio.gather(*(part.ensure_ready() for _ in range(5)))
    assert (part.state, part.initialized) == (S.READY, 1)


async def test_initializing_waits_for_it():
    part = Specimen()
    part.gates["initialize"].clear()
    starter = asyncio.create_task(part.initialize())
    await part.inside["initialize"].wait()
    waiter = asyncio.create_task(part.ensure_ready())
    await turns()
    assert not waiter.done()
    part.gates["initialize"].set()
    await asyncio.gather(starter, waiter)
    assert part.initialized == 1


async def test_a_failed_lazy_start_is_reported_and_the_next_call_tries_to_recover_once():
    part = Specimen()
    part.fails["initialize"] = OSError("no")
    for runs in (1, 2):
        with pytest.raises(ResourceInitializationError):
            await part.ensure_ready()
        assert part.initialized == runs


async def test_degraded_passes_unless_it_is_not_allowed():
    part = Specimen()
    await part.initialize()
    part.healthy = False
    await part.check_health()
    await part.ensure_ready()
    with pytest.raises(ResourceUnavailable, match="DEGRADED") as refused:
        await part.ensure_ready(allow_degraded=False)
    assert refused.value.state is S.DEGRADED


async def test_error_recovers_with_one_attempt_from_which_it_starts_clean():
    part = Specimen()
    await in_error(part)
    await asyncio.gather(*(part.ensure_ready() for _ in range(5)))
    assert (part.state, part.initialized, part.cleaned) == (S.READY, 2, 1)


async def test_error_makes_one_attempt_only_and_then_raises():
    part = Specimen()
    await in_error(part)
    part.fails["initialize"] = OSError("still broken")
    with pytest.raises(ResourceInitializationError, match="still broken"):
        await part.ensure_ready()
    assert part.initialized == 2
    assert part.state is S.ERROR


async def test_it_runs_no_health_check():
    part = Specimen()
    await part.ensure_ready()
    await part.ensure_ready()
    assert part.checked == 0


async def test_on_ready_it_takes_no_turn_of_the_event_loop():
    part = Specimen()
    await part.initialize()
    with pytest.raises(StopIteration):
        part.ensure_ready().send(None)


@pytest.mark.parametrize("hook", ["initialize", "cleanup", "health_check"])
@pytest.mark.parametrize(
    "call", ["initialize", "cleanup", "ensure_ready", "check_health", "recover"]
)
async def test_a_hook_that_calls_its_own_lifecycle_gets_an_error_and_no_deadlock(
    hook: str, call: str
):
    caught: list[ReentrantCall] = []

    class Reentrant(Specimen):
        async def _step(self, name: str) -> None:
            if name == hook:
                for direct in (True, False):
                    operation = getattr(self, call)()
                    try:
                        await (operation if direct else asyncio.wait_for(operation, 5))
                    except ReentrantCall as error:
                        caught.append(error)

    part = Reentrant()
    await part.initialize()
    await part.check_health()
    await part.cleanup()
    assert len(caught) == 2
    assert f"{call}()" in str(caught[0])
    assert f"its own {hook} hook" in str(caught[0])
    assert caught[0].resource_id == "s1"


async def test_a_hook_may_use_other_resources():
    class Owner(Specimen):
        async def _do_initialize(self) -> None:
            self.part = Specimen("part")
            await self.part.initialize()

        async def _do_health_check(self) -> bool:
            return await self.part.check_health()

        async def _do_cleanup(self) -> None:
            await self.part.cleanup()

    async with Owner("owner") as owner:
        assert await owner.check_health()
    assert owner.part.state is S.CLOSED


async def test_a_circle_through_another_resources_hook_is_seen_too():
    class Inner(Specimen):
        async def _do_initialize(self) -> None:
            await outer.ensure_ready()

    class Outer(Specimen):
        async def _do_initialize(self) -> None:
            await Inner("inner").initialize()

    outer = Outer("outer")
    with pytest.raises(ResourceInitializationError) as failed:
        await asyncio.wait_for(outer.initialize(), 5)
    cause: BaseException | None = failed.value
    while cause is not None and not isinstance(cause, ReentrantCall):
        cause = cause.__cause__
    assert isinstance(cause, ReentrantCall)


async def test_callbacks_that_inherit_a_hooks_context_are_free_once_the_hook_has_ended():
    """A server started in a hook handles its requests in tasks that inherit the hook's context."""
    answers: list[bytes] = []

    class Server(Specimen):
        async def _do_initialize(self) -> None:
            self.server = await asyncio.start_server(self.handle, "127.0.0.1", 0)

        async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await self.ensure_ready()
                writer.write(b"ready")
            except ReentrantCall:
                writer.write(b"reentrant")
            writer.close()
            await writer.wait_closed()

        async def _do_cleanup(self) -> None:
            self.server.close()
            await self.server.wait_closed()

    async with Server() as server:
        port = server.server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answers.append(await reader.read())
        writer.close()
        await writer.wait_closed()
    assert answers == [b"ready"]


@pytest.mark.virtual_clock
async def test_a_request_served_while_an_outer_hook_runs_waits_instead_of_being_refused():
    """The node's init hook starts its server; a request that comes then waits for the node."""
    served = asyncio.Event()

    class Part(AsyncResource):
        async def _do_initialize(self) -> None:
            async def request() -> None:
                # By then the part is up, and its owner is not.
                await asyncio.sleep(0.01)
                await owner.ensure_ready()
                served.set()

            self.request = asyncio.create_task(request())

        async def _do_cleanup(self) -> None:
            self.request.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.request

    class Owner(Specimen):
        async def _do_initialize(self) -> None:
            self.part = Part()
            await self.part.initialize()
            await super()._do_initialize()

        async def _do_cleanup(self) -> None:
            await self.part.cleanup()

    owner = Owner("owner")
    owner.gates["initialize"].clear()
    starting = asyncio.create_task(owner.initialize())
    await owner.inside["initialize"].wait()
    await asyncio.sleep(0.03)
    assert not served.is_set()
    owner.gates["initialize"].set()
    await starting
    await asyncio.wait_for(served.wait(), 5)
    await owner.cleanup()
