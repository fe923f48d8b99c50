"""How long an entry waits for a token, by what the stages say of themselves."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import until

from exo.inference.generation import GenerationRequest
from exo.networking.messages import Close, Message, Open
from exo.pipeline.frontend import Frontend, FrontendLimits
from exo.pipeline.timeouts import Pace, allowed
from exo.pipeline.transcript import NoText, Transcript
from exo.topology import NodeOffer, PlanStage, RingPlan

pytestmark = pytest.mark.virtual_clock
PLAN = RingPlan("m", 8, (PlanStage("a", 0, 3), PlanStage("b", 4, 7)), (), "e1")
QUICK = NodeOffer(node_id="a", incarnation=1, pass_ms=16)


@pytest.mark.parametrize(
    ("pace", "fresh", "tokens", "expected"),
    [
        (Pace(), False, 9, 60),  # a stage that has not told: as before there was anything to tell
        (Pace(), True, 9, 600),
        (Pace(0.0), False, 9, 60),
        (Pace(0.0), True, 9000, 60),
        (Pace(1.5), False, 9000, 90),  # slow machines: one token at a time, whatever came before it
        (Pace(0.5), True, 64, 80),
        (Pace(0.5), True, 65, 90),
        (Pace(0.5), True, 100_000, 600),  # never more than was ever allowed
        (Pace(1e12), False, 9, 600),  # nor on the word of a peer that says anything
    ],
)
def test_the_pace_of_the_stages_sets_how_long_a_token_may_take(
    pace: Pace, fresh: bool, tokens: int, expected: float
) -> None:
    assert allowed(pace, fresh=fresh, tokens=tokens, stall=60.0, first_stall=600.0) == expected


@given(st.floats(0, 1e6), st.booleans(), st.integers(1, 10**6))
def test_no_pace_makes_the_entry_less_patient_than_for_one_token_of_a_quick_ring(
    seconds: float, fresh: bool, tokens: int
) -> None:
    assert (
        60.0
        <= allowed(Pace(seconds), fresh=fresh, tokens=tokens, stall=60.0, first_stall=600.0)
        <= 600.0
    )


def test_the_pace_of_a_plan_is_known_once_all_its_stages_have_told() -> None:
    b = replace(QUICK, node_id="b", pass_ms=64, queued=True)
    assert Pace.of(PLAN, {"a": QUICK, "b": b}) == Pace(0.08, True)
    assert Pace.of(PLAN, {"a": QUICK, "b": replace(b, pass_ms=0)}) == Pace(None, True)
    assert Pace.of(PLAN, {"a": QUICK}) == Pace(None, False)
    assert Pace.of(
        PLAN, {"a": QUICK, "b": b, "c": replace(QUICK, node_id="c", pass_ms=9000)}
    ) == Pace(0.08, True)


class Source:
    async def wait_plan(self, timeout: float) -> RingPlan:
        return PLAN


@pytest.mark.parametrize(("queued", "attempts"), [(True, 1), (False, 2)])
async def test_waiting_for_memory_is_no_stall(queued: bool, attempts: int) -> None:
    posted: list[Message] = []
    entry = Frontend(
        "me",
        "me.1",
        lambda _, message: posted.append(message),
        Source(),
        lambda request: Transcript(request, NoText(), frozenset()),
        FrontendLimits(stall=0.0),
        lambda _: Pace(0.0, queued),
    )
    stream = entry.generate(
        GenerationRequest(request_id="r", model_id="m", prompt_tokens=(1, 2), max_tokens=3)
    )
    reading = asyncio.ensure_future(anext(stream))

    def opens() -> int:
        return sum(isinstance(message, Open) for message in posted)

    await until(lambda: opens() == 1)
    await asyncio.sleep(0.001)  # the clock has to move
    entry.sweep()
    await until(lambda: opens() >= attempts)
    await asyncio.sleep(0.01)
    assert opens() == attempts
    assert any(isinstance(message, Close) for message in posted) == (not queued)
    reading.cancel()
    await asyncio.wait([reading])
