"""From tokens to chunks of text: where an answer ends, and what of it is shown."""

from __future__ import annotations

import pytest
from loopback import ask

from exo.inference.engines.dummy import byte_tokenizer
from exo.inference.generation import FinishReason, GenerationChunk
from exo.inference.text.detokenizer import IncrementalDetokenizer
from exo.networking.messages import Token
from exo.pipeline.transcript import NoText, Transcript

TOKENIZER = byte_tokenizer()
END = TOKENIZER.control["<|im_end|>"]


def run(text: str | bytes, *, end: bool = False, **fields: object) -> list[GenerationChunk]:
    raw = text.encode() if isinstance(text, str) else text
    ids = [len(TOKENIZER.control) + byte for byte in raw] + ([END] if end else [])
    transcript = Transcript(
        ask(**{"max_tokens": 1000, **fields}), IncrementalDetokenizer(TOKENIZER), frozenset({END})
    )
    chunks = []
    for position, token in enumerate(ids):
        chunks.append(
            transcript.push(Token(sequence_id="s", epoch="e", position=position, token=token))
        )
        if chunks[-1].finish_reason is not None:
            break
    return chunks


def shown(chunks: list[GenerationChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def test_an_end_token_ends_the_answer_and_is_not_part_of_it() -> None:
    chunks = run("hi", end=True)
    assert shown(chunks) == "hi"
    assert (chunks[-1].finish_reason, chunks[-1].tokens, chunks[-1].completion_tokens) == (
        FinishReason.STOP,
        (),
        3,
    )


def test_end_tokens_can_be_ignored() -> None:
    chunks = run("hi", end=True, ignore_eos=True, max_tokens=3)
    assert (shown(chunks), chunks[-1].finish_reason) == ("hi", FinishReason.LENGTH)


def test_the_last_token_allowed_ends_the_answer_and_shows_what_was_held_back() -> None:
    chunks = run("end st", max_tokens=6, stop=("stop",))
    assert (shown(chunks), chunks[-1].finish_reason) == ("end st", FinishReason.LENGTH)


@pytest.mark.parametrize("stop", ["stop", "st", "p here"])
def test_a_stop_string_is_never_shown_even_in_parts(stop: str) -> None:
    chunks = run("now stop here", stop=(stop,))
    assert shown(chunks) == "now stop here".partition(stop)[0]
    assert chunks[-1].finish_reason is FinishReason.STOP


def test_half_a_character_is_not_shown_before_it_is_whole_and_is_marked_when_cut() -> None:
    assert [chunk.text for chunk in run("é", max_tokens=5)] == ["", "é"]
    cut = run("é".encode()[:1], end=True)
    assert shown(cut) == "\ufffd"


def test_only_the_last_chunk_has_a_finish_reason_and_counts_go_up_by_one() -> None:
    chunks = run("abcd", max_tokens=4)
    assert [chunk.finish_reason for chunk in chunks] == [None, None, None, FinishReason.LENGTH]
    assert [chunk.completion_tokens for chunk in chunks] == [1, 2, 3, 4]
    assert {chunk.prompt_tokens for chunk in chunks} == {3}


def test_log_probabilities_travel_with_their_token() -> None:
    transcript = Transcript(ask(), NoText(), frozenset())
    token = Token(
        sequence_id="s",
        epoch="e",
        position=3,
        token=7,
        logprob=-0.5,
        top_logprobs=((7, -0.5), (8, -1.0)),
    )
    chunk = transcript.push(token)
    assert chunk.logprob is not None
    assert (chunk.logprob.token, chunk.logprob.logprob) == (7, -0.5)
    assert [(each.token, each.logprob) for each in chunk.top_logprobs] == [(7, -0.5), (8, -1.0)]
