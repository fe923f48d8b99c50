"""The frontend alone: admission, placement, replay, the end of a stream. The ring is a list of what
was sent.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from loopback import ask, until

from exo.inference.errors import ExoError, NodeDraining, Overloaded, RingUnavailable
from exo.inference.generation import FinishReason, GenerationChunk, GenerationRequest
from exo.networking.messages import Close, Failed, Message, Open, Token
from exo.pipeline.frontend import Frontend, FrontendLimits
from exo.pipeline.timeouts import Pace
from exo.pipeline.transcript import NoText, Transcript
from exo.topology import PlanStage, RingPlan

pytestmark = pytest.mark.virtual_clock
PLAN = RingPlan("dummy", 8, (PlanStage("a", 0, 3), PlanStage("b", 4, 7)), (), "e1")
END = 2


class Bench:
    def __init__(self, **limits: float) -> None:
        self.sent: list[tuple[str, Message]] = []
        self.plan: RingPlan | None = PLAN
        self.paced: list[str] = []  # epochs of the plans whose pace was asked for
        self.entry = Frontend(
            "me",
            "me.1",
            lambda node, message: self.sent.append((node, message)),
            self,
            self._transcript,
            FrontendLimits(**limits),  # type: ignore[arg-type]
            self._pace,
        )

    async def wait_plan(self, timeout: float) -> RingPlan:
        if self.plan is None:
            await asyncio.sleep(timeout)
            raise RingUnavailable("needs 7 MiB more")
        return self.plan

    def _transcript(self, request: GenerationRequest) -> Transcript:
        return Transcript(request, NoText(), frozenset({END}))

    def _pace(self, plan: RingPlan) -> Pace:
        self.paced.append(plan.epoch)
        return Pace()

    def opens(self) -> list[Open]:
        return [message for _, message in self.sent if isinstance(message, Open)]

    def closes(self) -> list[tuple[str, str]]:
        return [
            (node, message.sequence_id) for node, message in self.sent if isinstance(message, Close)
        ]

    def say(self, token: int, position: int, *, of: str | None = None, sender: str = "b") -> None:
        sequence_id = of or self.opens()[-1].sequence_id
        self.entry.token(
            sender, Token(sequence_id=sequence_id, epoch="e1", position=position, token=token)
        )

    def fail(self, *, retryable: bool, sender: str = "b", of: str | None = None) -> None:
        sequence_id = of or self.opens()[-1].sequence_id
        self.entry.failed(
            sender,
            Failed(
                sequence_id=sequence_id, epoch="e1", node=sender, reason="why", retryable=retryable
            ),
        )


async def begun(bench: Bench, request: GenerationRequest) -> asyncio.Task[list[GenerationChunk]]:
    async def read() -> list[GenerationChunk]:
        return [chunk async for chunk in bench.entry.generate(request)]

    task = asyncio.create_task(read())
    await until(lambda: bench.opens() or task.done())
    return task


def tokens(chunks: list[GenerationChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.tokens]


async def test_a_request_opens_at_the_first_stage_and_closes_everywhere_at_its_end() -> None:
    bench = Bench()
    task = await begun(bench, ask(max_tokens=2))
    assert [(node, type(message).__name__) for node, message in bench.sent] == [("a", "Open")]
    assert (bench.opens()[0].entry, bench.opens()[0].max_length) == ("me", 5)
    bench.say(50, 3)
    bench.say(51, 4)
    chunks = await task
    assert tokens(chunks) == [50, 51]
    assert chunks[-1].finish_reason is FinishReason.LENGTH
    assert [node for node, _ in bench.closes()] == ["a", "b"]
    assert bench.entry.live == 0


async def test_the_ring_is_told_of_the_end_before_the_caller_reads_on() -> None:
    bench = Bench()
    stream = bench.entry.generate(ask(max_tokens=5))
    reading = asyncio.create_task(anext(stream))
    await until(bench.opens)
    bench.say(50, 3)
    bench.say(END, 4)
    assert bench.closes()
    await reading
    last = await anext(stream)
    assert (last.finish_reason, last.tokens, last.completion_tokens) == (FinishReason.STOP, (), 2)


async def test_a_failed_attempt_goes_on_behind_the_last_token_under_another_name() -> None:
    bench = Bench()
    task = await begun(bench, ask(max_tokens=3))
    bench.say(50, 3)
    first = bench.opens()[0].sequence_id
    bench.fail(retryable=True)
    await until(lambda: len(bench.opens()) == 2)
    second = bench.opens()[1]
    assert second.tokens == (10, 20, 30, 50)
    assert (second.prompt_length, second.sequence_id != first) == (3, True)
    bench.say(99, 4, of=first)  # late news of the abandoned attempt
    bench.say(51, 4)
    bench.say(52, 5)
    assert tokens(await task) == [50, 51, 52]
    assert ("b", first) in bench.closes()


async def test_doubled_tokens_are_dropped_and_a_gap_is_replayed() -> None:
    bench = Bench()
    task = await begun(bench, ask(max_tokens=3))
    bench.say(50, 3)
    bench.say(77, 3)
    bench.say(52, 5)
    await until(lambda: len(bench.opens()) == 2)
    bench.say(51, 4)
    bench.say(52, 5)
    assert tokens(await task) == [50, 51, 52]


async def test_nobody_but_the_last_stage_says_tokens_and_no_stranger_fails_a_sequence() -> None:
    bench = Bench()
    task = await begun(bench, ask(max_tokens=1))
    bench.say(66, 3, sender="a")
    bench.fail(retryable=False, sender="stranger")
    assert not task.done()
    bench.say(50, 3)
    assert tokens(await task) == [50]


async def test_what_cannot_be_replayed_is_an_error_that_names_the_node() -> None:
    bench = Bench()
    task = await begun(bench, ask())
    bench.fail(retryable=False)
    with pytest.raises(ExoError, match="node 'b' could not go on with this request: why"):
        await task
    assert bench.entry.live == 0


async def test_without_a_ring_a_new_request_ends_with_what_is_missing() -> None:
    bench = Bench(first_wait=0.01)
    bench.plan = None
    with pytest.raises(RingUnavailable, match="needs 7 MiB more"):
        await (await begun(bench, ask()))


async def test_attempts_that_fail_again_and_again_end_in_time() -> None:
    bench = Bench(recovery=1.0)
    task = await begun(bench, ask())
    while not task.done():
        count = len(bench.opens())
        bench.fail(retryable=True)
        await until(lambda count=count, task=task: len(bench.opens()) > count or task.done())
    with pytest.raises(RingUnavailable, match="for 1 s: b: why"):
        await task
    assert 2 <= len(bench.opens()) < 20  # it waits longer from one to the next


async def test_more_requests_than_the_node_takes_are_told_when_to_come_back() -> None:
    bench = Bench(max_requests=1)
    task = await begun(bench, ask())
    with pytest.raises(Overloaded) as caught:
        await anext(bench.entry.generate(ask()))
    assert caught.value.retry_after >= 1.0
    task.cancel()


async def test_a_reader_that_goes_away_frees_the_sequence_everywhere() -> None:
    bench = Bench()
    stream = bench.entry.generate(ask())
    reading = asyncio.create_task(anext(stream))
    await until(bench.opens)
    bench.say(50, 3)
    await reading
    await stream.aclose()
    assert [node for node, _ in bench.closes()] == ["a", "b"]
    assert bench.entry.live == 0
    cancelled = await begun(bench, ask())
    await until(lambda: len(bench.opens()) == 2)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert bench.entry.live == 0


async def test_a_draining_entry_takes_nothing_new_and_waits_for_what_runs() -> None:
    bench = Bench()
    task = await begun(bench, ask(max_tokens=1))
    bench.entry.stop_admission()
    with pytest.raises(NodeDraining):
        await anext(bench.entry.generate(ask()))
    assert not await bench.entry.wait_empty(0.01)
    bench.say(50, 3)
    await task
    assert await bench.entry.wait_empty(0.01)


async def test_an_attempt_without_a_token_for_too_long_is_given_up() -> None:
    bench = Bench(first_stall=0.0)
    task = await begun(bench, ask(max_tokens=1))
    await asyncio.sleep(0.001)
    bench.entry.sweep()
    await until(lambda: len(bench.opens()) == 2)
    bench.say(50, 3)
    assert tokens(await task) == [50]


async def test_each_sweep_asks_for_the_pace_of_a_plan_once_however_many_sequences_run_by_it() -> (
    None
):
    bench = Bench()
    tasks = [asyncio.ensure_future(anext(bench.entry.generate(ask()))) for _ in range(3)]
    await until(lambda: len(bench.opens()) == 3)
    bench.plan = replace(PLAN, epoch="e2")
    tasks.append(asyncio.ensure_future(anext(bench.entry.generate(ask()))))
    await until(lambda: len(bench.opens()) == 4)
    bench.entry.sweep()
    assert bench.paced == ["e1", "e2"]
    bench.entry.sweep()  # at the next sweep it may be another
    assert bench.paced == ["e1", "e2"] * 2
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_a_plan_without_a_leaving_node_takes_its_sequences_over_and_leaves_the_others() -> (
    None
):
    bench = Bench()
    task = await begun(bench, ask(max_tokens=1))
    bench.entry.leave({"c"}, "e2")
    assert len(bench.opens()) == 1
    bench.plan = replace(PLAN, stages=(PlanStage("b", 0, 7),), epoch="e2")
    bench.entry.leave({"a"}, "e2")
    await until(lambda: len(bench.opens()) == 2)
    assert bench.opens()[1].epoch == "e2"
    bench.say(50, 3)
    assert tokens(await task) == [50]


async def test_no_tokens_asked_for_is_an_answer_of_none() -> None:
    bench = Bench()
    (chunk,) = [chunk async for chunk in bench.entry.generate(ask(max_tokens=0))]
    assert (chunk.finish_reason, chunk.completion_tokens) == (FinishReason.LENGTH, 0)
    assert bench.sent == []
