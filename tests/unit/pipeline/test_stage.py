"""One stage alone: what it takes from whom, and what it tells whom."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from loopback import until

from exo.inference.engines.dummy import DummyEngine
from exo.inference.engines.inference_engine import Step
from exo.inference.errors import SequenceLost
from exo.inference.sampling.params import SamplingParams
from exo.inference.shard import Shard
from exo.networking.errors import WrongEpoch
from exo.networking.messages import Failed, Forward, Message, Open, Token
from exo.pipeline.assignment import Assignment
from exo.pipeline.samplers import SequenceSampler
from exo.pipeline.scheduler import Limits
from exo.pipeline.stage import Stage

PARAMS = SamplingParams(temperature=0.0)
LAYERS = {"first": (0, 2), "middle": (3, 5), "last": (6, 7)}
NODES = ("first", "middle", "last")


class Bench:
    """A stage with its engine loaded, and what it sent."""

    def __init__(
        self, node_id: str, engine: DummyEngine | None = None, limits: Limits | None = None
    ) -> None:
        self.sent: list[tuple[str, Message]] = []
        self.unreachable = ""  # a node that nothing can be sent to
        self.engine = engine or DummyEngine()
        self.stage = Stage(node_id, self.engine, self._send, SequenceSampler, limits)
        start, end = LAYERS[node_id]
        self.assignment = Assignment(
            "e1", Shard("dummy", start, end, 8), NODES, NODES.index(node_id)
        )

    def _send(self, node_id: str, message: Message) -> None:
        self.sent.append((node_id, message))
        if node_id == self.unreachable:
            self.stage.fail(message.sequence_id, "not connected", retryable=True)

    async def begin(self) -> None:
        await self.engine.initialize()
        await self.engine.load_checkpoint(self.assignment.shard, "dummy")
        await self.stage.initialize()
        self.stage.serve(self.assignment)

    def kinds(self, node_id: str) -> list[str]:
        return [type(message).__name__ for to, message in self.sent if to == node_id]

    def failures(self) -> list[Failed]:
        return [message for _, message in self.sent if isinstance(message, Failed)]


@pytest.fixture(params=["first"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    made = Bench(request.param)
    await made.begin()
    yield made
    await made.stage.cleanup()
    await made.engine.cleanup()


def at(node_id: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bench", [node_id], indirect=True)


def opened(
    sequence_id: str = "s", entry: str = "entry", epoch: str = "e1", tokens: int = 3
) -> Open:
    return Open(
        sequence_id=sequence_id,
        epoch=epoch,
        entry=entry,
        tokens=tuple(range(10, 10 + tokens)),
        prompt_length=tokens,
        params=PARAMS,
        max_length=20,
    )


def forward(position: int = 0, rows: int = 3, *, sample: bool = True, epoch: str = "e1") -> Forward:
    values = np.ones((rows, 8), np.float32)
    return Forward(sequence_id="s", epoch=epoch, position=position, values=values, sample=sample)


async def test_the_first_stage_begins_with_the_opened_tokens_and_passes_both_on(
    bench: Bench,
) -> None:
    bench.stage.open("entry", opened())
    await until(lambda: len(bench.sent) == 2)
    assert bench.kinds("middle") == ["Open", "Forward"]
    sent = bench.sent[1][1]
    assert isinstance(sent, Forward)
    assert (sent.position, sent.values.shape, sent.values.dtype, sent.sample) == (
        0,
        (3, 8),
        np.float32,
        True,
    )


@at("last")
async def test_the_last_stage_tells_entry_and_first_stage_the_token(bench: Bench) -> None:
    bench.stage.open("middle", opened())
    bench.stage.forward("middle", forward())
    await until(lambda: len(bench.sent) == 2)
    assert (bench.kinds("entry"), bench.kinds("first")) == (["Token"], ["Token"])
    token = bench.sent[0][1]
    assert isinstance(token, Token)
    assert token.position == 3


async def test_the_token_is_the_first_stages_next_step_once(bench: Bench) -> None:
    bench.stage.open("entry", opened())
    token = Token(sequence_id="s", epoch="e1", position=3, token=99)
    bench.stage.token("last", token)
    bench.stage.token("last", token)  # a second one of the same position is late news
    await until(lambda: bench.engine.sequences and len(bench.sent) == 3)
    positions = [message.position for _, message in bench.sent if isinstance(message, Forward)]
    assert positions == [0, 3]


@at("middle")
async def test_a_message_of_another_epoch_is_refused_and_told_which_one_is_served(
    bench: Bench,
) -> None:
    for message in (opened(epoch="e0"), forward(epoch="e0")):
        with pytest.raises(WrongEpoch) as caught:
            (bench.stage.open if isinstance(message, Open) else bench.stage.forward)(
                "first", message
            )  # type: ignore[arg-type]
        assert caught.value.have == "e1"


@at("middle")
async def test_strangers_open_forward_and_close_nothing(bench: Bench) -> None:
    bench.stage.open("last", opened())
    assert bench.stage.live() == 0
    bench.stage.open("first", opened())
    bench.stage.forward("last", forward())
    bench.stage.close("stranger", "s")
    assert bench.stage.live() == 1
    assert bench.kinds("last") == ["Open"]


async def test_only_the_entry_itself_opens_at_the_first_stage(bench: Bench) -> None:
    bench.stage.open("somebody", opened(entry="entry"))
    assert bench.stage.live() == 0


async def test_only_the_last_stage_says_what_the_token_is(bench: Bench) -> None:
    bench.stage.open("entry", opened())
    bench.stage.token("entry", Token(sequence_id="s", epoch="e1", position=3, token=1))
    await until(lambda: len(bench.sent) == 2)
    assert bench.engine.kv_tokens_free is None
    assert [m.position for _, m in bench.sent if isinstance(m, Forward)] == [0]


@at("middle")
async def test_a_gap_in_the_positions_fails_the_sequence_for_a_replay(bench: Bench) -> None:
    bench.stage.open("first", opened())
    bench.stage.forward("first", forward(position=5))
    (failed,) = bench.failures()
    assert failed.retryable
    assert "position 5 asked for, 0 held" in failed.reason
    assert bench.stage.live() == 0


async def test_closing_frees_the_kv_between_passes(bench: Bench) -> None:
    bench.stage.open("entry", opened())
    await until(lambda: bench.engine.sequences == 1)
    bench.stage.close("entry", "s")
    await until(lambda: bench.engine.sequences == 0)
    assert bench.stage.live() == 0


async def test_a_close_that_overtakes_its_open_still_counts(bench: Bench) -> None:
    bench.stage.close("entry", "s")
    bench.stage.open("entry", opened())
    assert bench.stage.live() == 0


async def test_a_retired_epoch_gives_its_sequences_back_to_their_entries(bench: Bench) -> None:
    bench.stage.open("entry", opened())
    bench.stage.retire("e1", "other layers")
    assert [failed.retryable for failed in bench.failures()] == [True]
    with pytest.raises(WrongEpoch):
        bench.stage.open("entry", opened("t"))


@at("middle")
async def test_a_lost_entry_is_told_behind_where_its_sequence_may_arrive_after_the_loss(
    bench: Bench,
) -> None:
    bench.stage.open("first", opened())
    bench.stage.forget_entry("entry")
    assert bench.kinds("last") == ["Open", "Close"]
    bench.stage.open("first", opened("late"))  # the stage before had not noticed yet
    for stranger in ("last", "stranger"):
        bench.stage.close_behind(stranger, "late")
    assert bench.stage.live() == 1
    bench.stage.close_behind("first", "late")
    assert bench.stage.live() == 0
    assert bench.kinds("last") == ["Open", "Close"] * 2


@at("middle")
async def test_an_epoch_that_is_served_again_goes_on_with_its_sequences(bench: Bench) -> None:
    """As when a newer plan comes and goes while they run."""
    bench.stage.open("first", opened())
    bench.stage.serve(Assignment("e1", bench.assignment.shard, NODES, 1))
    bench.stage.forward("first", forward())
    await until(lambda: bench.kinds("last") == ["Open", "Forward"])


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


async def test_a_lost_entry_frees_its_sequences_only(bench: Bench) -> None:
    bench.stage.open("entry", opened("a"))
    bench.stage.open("other", opened("b", entry="other"))
    bench.stage.forget_entry("entry")
    assert bench.stage.live() == 1
    assert bench.failures() == []


class Breaking(DummyEngine):
    """Fails every pass that holds one of `poison`."""

    poison: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()

    async def _infer_batch(self, shard: Shard, steps: list[Step]) -> list[np.ndarray]:  # type: ignore[override]
        for step in steps:
            if step.request_id in self.lost:
                raise SequenceLost(step.request_id, expected=step.position, held=None)
        if any(step.request_id in self.poison for step in steps):
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


async def test_an_open_that_the_next_stage_cannot_be_told_fails_the_sequence_at_once(
    bench: Bench,
) -> None:
    bench.unreachable = "middle"
    bench.stage.open("entry", opened())
    assert [failed.reason for failed in bench.failures()] == ["not connected"]
    assert bench.stage.live() == 0


async def test_the_last_token_allowed_is_no_further_step(bench: Bench) -> None:
    bench.stage.open("entry", opened())
    for position in range(3, 30):
        bench.stage.token("last", Token(sequence_id="s", epoch="e1", position=position, token=9))
    await until(lambda: bench.kinds("middle").count("Forward") == 17)
    await until(lambda: bench.stage.statistics().scheduler.ready == 0)
    assert [m.position for _, m in bench.sent if isinstance(m, Forward)] == [0, *range(3, 19)]
    assert bench.failures() == []


@at("middle")
async def test_a_sequence_that_grows_beyond_what_it_said_is_ended(bench: Bench) -> None:
    bench.stage.open("first", opened())
    bench.stage.forward("first", forward(rows=21))
    (failed,) = bench.failures()
    assert (failed.retryable, failed.reason) == (
        False,
        "longer than the 20 tokens it was opened for",
    )


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
    for _ in range(100):  # a pass would begin within a few turns of the loop
        await asyncio.sleep(0)
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
