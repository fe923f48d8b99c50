"""The forward passes of one stage: what runs together, and what a failure costs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from loopback import until
from stage_bench import Bench, at, forward, opened

from exo.inference.engines.dummy import DummyEngine
from exo.inference.engines.inference_engine import Step
from exo.inference.errors import SequenceLost
from exo.inference.shard import Shard
from exo.networking.messages import Token
from exo.pipeline.assignment import Assignment

pytestmark = pytest.mark.virtual_clock


@at("last")
async def test_a_pass_that_fails_in_an_unforeseen_way_costs_an_attempt_and_not_the_stage(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.stage.open("middle", opened())
    with monkeypatch.context() as broken:
        broken.setattr("exo.pipeline.passes.sample", None)
        bench.stage.forward("middle", forward())
        await until(bench.failures)
    assert bench.failures()[0].retryable
    assert await bench.stage.check_health()
    again = opened("again")
    bench.stage.open("middle", again)
    bench.stage.forward("middle", replace(forward(), sequence_id="again"))
    await until(lambda: bench.kinds("entry") == ["Failed", "Token"])


async def test_a_release_that_fails_stops_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(request_id: str) -> None:
        raise RuntimeError("no")

    bench.stage.open("entry", opened("one"))
    await until(lambda: bench.engine.sequences == 1)
    with monkeypatch.context() as patched:
        patched.setattr(bench.engine, "release", broken)
        bench.stage.close("entry", "one")
        await until(lambda: bench.stage.statistics().unreleased == 0)
    bench.stage.open("entry", opened("two"))
    await until(lambda: bench.kinds("middle") == ["Open", "Forward"] * 2)


class Breaking(DummyEngine):
    """Fails every pass that holds one of `poison`."""

    poison: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()

    async def _infer_batch(self, shard: Shard, steps: list[Step]) -> list[np.ndarray]:  # type: ignore[override]
        for step in steps:
            if step.sequence_id in self.lost:
                raise SequenceLost(step.sequence_id, expected=step.position, held=None)
        if any(step.sequence_id in self.poison for step in steps):
            raise FloatingPointError("broken")
        return await super()._infer_batch(shard, steps)


async def test_a_sequence_that_breaks_the_engine_takes_no_other_with_it() -> None:
    engine = Breaking()
    engine.poison, engine.lost = frozenset({"poison"}), frozenset({"evicted"})
    bench = Bench("first", engine)
    await bench.begin()
    for name in ("good", "poison", "evicted", "fine"):
        bench.stage.open("entry", opened(name))
    await until(lambda: len(bench.failures()) == 2 and bench.kinds("middle").count("Forward") == 2)
    assert {failed.sequence_id: failed.retryable for failed in bench.failures()} == {
        "poison": False,
        "evicted": True,
    }
    assert bench.stage.live() == 2
    await bench.stage.cleanup()


async def test_sequences_beyond_the_kv_budget_wait_for_the_others() -> None:
    bench = Bench("first", DummyEngine(kv_tokens=200))
    await bench.begin()
    for name in "abc":
        bench.stage.open("entry", opened(name))
    await until(lambda: bench.kinds("middle").count("Forward") == 2)
    assert bench.failures() == []
    bench.stage.close("entry", "a")
    await until(lambda: bench.kinds("middle").count("Forward") == 3)
    await bench.stage.cleanup()


class Remembering(DummyEngine):
    """Says that it knows the first two tokens of whatever begins."""

    async def _reuse_prefix(self, request_id: str, tokens: Sequence[int], limit: int) -> int:
        await self._infer_batch(self.whole, [Step(request_id, np.asarray(tokens[:2]), 0, "none")])
        return 2

    whole = Shard("dummy", 0, 7, 8)


async def test_a_node_of_all_layers_begins_behind_what_its_engine_knows_and_says_the_same() -> None:
    tokens = []
    for engine in (DummyEngine(), Remembering()):
        bench = Bench("first", engine)
        bench.assignment = Assignment("e1", Remembering.whole, ("first",), 0)
        await bench.begin()
        bench.stage.open("entry", opened())
        await until(lambda bench=bench: bench.kinds("entry"))
        tokens.append(bench.sent[0][1])
        await bench.stage.cleanup()
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    "names", ["ab", "abcdefghijklmnop"], ids=["two", "more than a micro-batch for each stage"]
)
async def test_stages_that_share_a_machine_let_their_batches_grow_into_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    monkeypatch.setattr("exo.pipeline.passes.TOGETHER_SECONDS", 5.0)
    # A round of passes, which the wait never exceeds, seems to take minutes.
    monkeypatch.setattr("exo.pipeline.passes.perf_counter", itertools.count(step=100.0).__next__)
    bench.stage.serve(bench.assignment, together=True)
    for name in names:
        bench.stage.open("entry", opened(name))
    await until(lambda: bench.kinds("middle").count("Forward") == len(names))
    before = bench.stage.statistics().passes
    for name in names[:-1]:
        bench.stage.token("last", Token(sequence_id=name, epoch="e1", position=3, token=9))
    await asyncio.sleep(1.0)
    assert bench.stage.statistics().passes == before
    bench.stage.token("last", Token(sequence_id=names[-1], epoch="e1", position=3, token=9))
    await until(lambda: bench.kinds("middle").count("Forward") == 2 * len(names))
    assert bench.stage.statistics().passes == before + 1


async def test_waiting_for_the_others_has_an_end(bench: Bench) -> None:
    bench.stage.serve(bench.assignment, together=True)
    for name in "ab":
        bench.stage.open("entry", opened(name))
    await until(lambda: bench.kinds("middle").count("Forward") == 2)
    bench.stage.token("last", Token(sequence_id="a", epoch="e1", position=3, token=9))
    await until(lambda: bench.kinds("middle").count("Forward") == 3, timeout=5.0)


async def test_a_sequence_closed_while_its_prefix_is_looked_up_harms_nobody() -> None:
    engine = Closing()
    bench = Bench("first", engine)
    bench.assignment = Assignment("e1", Remembering.whole, ("first",), 0)
    await bench.begin()
    engine.close = lambda: bench.stage.close("entry", "a")
    bench.stage.open("entry", opened("a"))
    await until(lambda: engine.closed)
    bench.stage.open("entry", opened("b"))
    await until(lambda: "Token" in bench.kinds("entry"))
    assert await bench.stage.check_health()
    await bench.stage.cleanup()


class Closing(DummyEngine):
    closed = False

    async def _reuse_prefix(self, request_id: str, tokens: Sequence[int], limit: int) -> int:
        if request_id == "a":
            self.close()
            self.closed = True
        return 0

    def close(self) -> None:
        raise NotImplementedError
