"""Tensors by canonical name: raw blocks and float32 say the same, whatever the family packs or
permutes.
"""

from __future__ import annotations

import numpy as np
import pytest
from golden_data import Case, all_cases

from exo.inference.checkpoints.dequantize import to_float32
from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.errors import CheckpointError
from exo.inference.models import open_weights, supported_families
from exo.inference.shard import Shard


@pytest.mark.parametrize("case", all_cases(), ids=lambda c: c.name)
def test_raw_blocks_hold_what_the_float_tensor_says(case: Case) -> None:
    with open_checkpoint(case.checkpoint) as checkpoint:
        weights = open_weights(checkpoint)
        for name in weights.names(Shard.whole("m", weights.config.n_layers)):
            value, raw = weights.tensor(name), weights.raw(name)
            assert value.shape == raw.shape == weights.source(name).shape
            offset = 1.0 if weights.config.family == "gemma2" and name.endswith("norm") else 0.0
            assert np.array_equal(to_float32(raw) + np.float32(offset), value)
            assert raw.data.nbytes == weights.n_bytes(name)


def test_gguf_rows_come_in_the_order_of_the_folder_they_were_made_from() -> None:
    cases = {case.name: case.checkpoint for case in all_cases()}
    with (
        open_checkpoint(cases["tiny-llama.F32.gguf"]) as a,
        open_checkpoint(cases["llama-llama3rope"]) as b,
    ):
        ours, theirs = open_weights(a), open_weights(b)
        for name in ours.names(Shard.whole("m", 4)):
            assert np.array_equal(ours.tensor(name), theirs.tensor(name)), name
        np.testing.assert_allclose(
            ours.config.rope.divisors, theirs.config.rope.divisors, rtol=1e-6
        )


def test_first_and_last_stages_have_the_tables_and_the_middle_has_none() -> None:
    with open_checkpoint(all_cases()[0].checkpoint) as checkpoint:
        weights = open_weights(checkpoint)
        n = weights.config.n_layers
        first, middle, last = (set(weights.names(Shard("m", k, k, n))) for k in (0, 1, n - 1))
        assert "embed" in first
        assert not {"norm", "head"} & first
        assert not {"embed", "norm", "head"} & middle
        assert {"norm", "head"} <= last
        with pytest.raises(CheckpointError, match="no tensor 'router'"):
            weights.source("0.router")


def test_the_families_of_the_issue_are_there() -> None:
    assert {"llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2"} <= set(supported_families())
