"""How the operator starts and ends: the Lease, the workers, the watches."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from exo_operator.controller.controller import Controller
from exo_operator.controller.health import Health
from exo_operator.controller.metrics import Metrics
from exo_operator.main import Operator
from exo_operator.settings import Settings
from waiting import eventually

from .builders import exonode
from .fake_kube import FakeKube, FakeNodes


@dataclass
class Election:
    """A Lease that a test hands out and takes away."""

    gained: asyncio.Event = field(default_factory=asyncio.Event)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    broken: asyncio.Event = field(default_factory=asyncio.Event)
    released: bool = False

    async def campaign(self) -> None:
        await self.broken.wait()
        raise OSError("the election broke")

    async def release(self) -> None:
        self.released = True


class Unwatched(Operator):
    """An operator that watches nothing, and stops watching on a signal, as kopf does."""

    async def _watch(self, controller: Controller) -> None:
        await self.stop.wait()


def operator(kube: Any, election: Any, **options: Any) -> Unwatched:
    return Unwatched(
        Settings(workers=2, **options),
        kube,
        election,
        FakeNodes(),  # type: ignore[arg-type]
        Metrics(),
        Health(),
        asyncio.Event(),
    )


def leads(tested: Operator) -> bool:
    return tested.metrics.registry.get_sample_value("exo_operator_leader") == 1


@pytest.fixture
def kube() -> FakeKube:
    return FakeKube()


@pytest.fixture
def election() -> Election:
    return Election()


async def test_a_replica_waits_for_the_lease_then_reconciles_and_stops_on_a_signal(
    kube: FakeKube, election: Election
) -> None:
    kube.seed(exonode())
    tested = operator(kube, election)
    running = asyncio.create_task(tested.run())
    await eventually(lambda: tested.health.synced)
    assert not leads(tested)
    election.gained.set()
    await eventually(lambda: "apply Pod paris" in kube.writes)
    assert leads(tested)
    tested.stop.set()
    assert await running == 0
    assert election.released


async def test_a_signal_ends_a_replica_that_still_waits_for_the_lease(
    kube: FakeKube, election: Election
) -> None:
    tested = operator(kube, election)
    running = asyncio.create_task(tested.run())
    await eventually(lambda: tested.health.synced)
    tested.stop.set()
    assert await running == 0
    assert not leads(tested)
    assert kube.writes == []


async def test_a_replica_that_loses_its_lease_ends_as_a_failure(
    kube: FakeKube, election: Election
) -> None:
    tested = operator(kube, election)
    election.gained.set()
    running = asyncio.create_task(tested.run())
    await eventually(lambda: leads(tested))
    election.lost.set()
    assert await running == 1


async def test_an_election_that_breaks_ends_the_replica_as_a_failure(
    kube: FakeKube, election: Election
) -> None:
    waiting = operator(kube, election)
    election.broken.set()
    assert await waiting.run() == 1


async def test_a_task_that_must_not_end_ends_the_operator_as_a_failure(
    kube: FakeKube, election: Election
) -> None:
    tested = operator(kube, election)
    election.gained.set()
    running = asyncio.create_task(tested.run())
    await eventually(lambda: leads(tested))
    election.broken.set()
    assert await running == 1


async def test_without_an_election_it_leads_at_once(kube: FakeKube, election: Election) -> None:
    tested = operator(kube, election, leader_election=False)
    running = asyncio.create_task(tested.run())
    await eventually(lambda: leads(tested))
    tested.stop.set()
    assert await running == 0
