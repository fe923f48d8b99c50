"""One stage alone: what it takes from whom, and what it tells whom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from loopback import until
from stage_bench import NODES, Bench, at, forward, opened

from exo.networking.errors import WrongEpoch
from exo.networking.messages import Forward, Open, Token
from exo.pipeline.assignment import Assignment

pytestmark = pytest.mark.virtual_clock


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


async def test_a_lost_entry_frees_its_sequences_only(bench: Bench) -> None:
    bench.stage.open("entry", opened("a"))
    bench.stage.open("other", opened("b", entry="other"))
    bench.stage.forget_entry("entry")
    assert bench.stage.live() == 1
    assert bench.failures() == []


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


@at("last")
async def test_a_chunk_that_comes_in_parts_is_sampled_once_and_like_the_whole(bench: Bench) -> None:
    bench.stage.open("middle", opened("whole"))
    bench.stage.open("middle", opened("parts"))
    rows = np.arange(24, dtype=np.float32).reshape(3, 8)
    whole = Forward(sequence_id="whole", epoch="e1", position=0, values=rows, sample=True)
    bench.stage.forward("middle", whole)
    for start, stop in ((0, 2), (2, 3)):
        part = replace(whole, sequence_id="parts", position=start, values=rows[start:stop])
        bench.stage.forward("middle", replace(part, sample=stop == 3))
    await until(lambda: len(bench.kinds("entry")) == 2)
    said = {m.sequence_id: (m.position, m.token) for _, m in bench.sent if isinstance(m, Token)}
    assert said["parts"] == said["whole"]
    assert said["whole"][0] == 3
