"""Tokenizer, incremental detokenization, chat template and sampling:
exactly as in the references.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from golden_data import DATA

from exo.inference.checkpoints.catalog import resolve_model
from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.sampling.params import SamplingParams
from exo.inference.sampling.sampling import distribution, sample
from exo.inference.text.chat_template import encode_chat, render_chat
from exo.inference.text.detokenizer import IncrementalDetokenizer
from exo.inference.text.load import load_tokenizer
from exo.inference.text.tokenizer import Tokenizer

CASES: dict[str, Any] = json.loads((DATA / "smollm2" / "tokenizer_cases.json").read_text())
PROMPTS: list[dict[str, Any]] = json.loads(
    (DATA / "smollm2" / "reference_smollm2.json").read_text()
)["prompts"]
SAMPLING: list[dict[str, Any]] = json.loads(
    (DATA / "sampling" / "reference_sampling.json").read_text()
)["cases"]


@lru_cache
def tokenizer() -> Tokenizer:
    with open_checkpoint(resolve_model("smollm2-135m")) as checkpoint:
        return load_tokenizer(checkpoint)


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda c: repr(c["text"])[:40])
def test_text_becomes_the_reference_tokens_and_back(case: dict[str, Any]) -> None:
    assert tokenizer().encode(case["text"], allow_special=True) == case["ids"]
    assert tokenizer().encode(case["text"]) == case["ids_llama_cpp_no_special"]
    assert tokenizer().decode(case["ids"], skip_special=False) == case["decoded"]
    assert tokenizer().decode(case["ids"]) == case["decoded_skip_special"]


@pytest.mark.parametrize("case", CASES["incremental"], ids=lambda c: f"{c['text']}-{len(c['ids'])}")
def test_text_comes_as_soon_as_its_bytes_are_certain(case: dict[str, Any]) -> None:
    stream = IncrementalDetokenizer(tokenizer(), skip_special=False)
    assert [stream.push(i) for i in case["ids"]] == case["pieces_earliest"]
    assert stream.flush() == case["flush"]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda p: p["messages"][-1]["content"][:30])
def test_a_conversation_becomes_the_reference_text_and_tokens(prompt: dict[str, Any]) -> None:
    assert render_chat(tokenizer().chat_template, prompt["messages"]) == prompt["text"]
    assert encode_chat(tokenizer(), prompt["messages"]) == prompt["ids"]


@pytest.mark.parametrize("index", range(len(SAMPLING)), ids=lambda i: str(i))
def test_the_distribution_is_that_of_transformers_processors(index: int) -> None:
    settings = {k: v for k, v in SAMPLING[index].items() if k not in {"kept", "max_prob"}}
    with np.load(DATA / "sampling" / "reference_sampling.npz") as file:
        logits, history, want = file["logits"], file["history"].tolist(), file["probs"][index]
    ids, probabilities = distribution(logits, SamplingParams(**settings), history)
    got = np.zeros(len(logits))
    got[ids] = probabilities
    assert np.array_equal(got > 0, want > 0)
    np.testing.assert_allclose(got, want, atol=1e-6, rtol=0)


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    draws = [sample(logits, SamplingParams(seed=7), [], 0, p)[0] for p in range(4000)]
    np.testing.assert_allclose(
        np.bincount(draws, minlength=4) / 4000, [0.5, 0.3, 0.15, 0.05], atol=0.025
    )
