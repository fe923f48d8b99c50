"""`exo eval` and `exo bench` behind the command line."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_data import DATA, Case, folder_cases

from exo.inference import evaluate
from exo.inference.errors import InvalidRequest
from exo.inference.evaluate import bench, eval_logits, eval_perplexity

TINY = DATA / "tiny-gguf" / "tiny-llama.F32.gguf"


@pytest.mark.parametrize("case", folder_cases(), ids=lambda c: c.name)
@pytest.mark.parametrize(("shards", "batch"), [(1, False), (3, True)])
async def test_logits_are_the_references_in_stages_and_batches(
    case: Case, shards: int, batch: bool, tmp_path: Path
) -> None:
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([s.tolist() for s in case.sequences()]))
    out = tmp_path / "logits"
    await eval_logits(str(case.checkpoint), ids, out, "numpy", shards, batch)
    with np.load(out) as got:
        for i in range(len(case.sequences())):
            np.testing.assert_allclose(
                got[f"logits_{i}"], case.load()[f"logits_{i}"], atol=1e-4, rtol=0
            )
            assert got[f"logits_{i}"].dtype == np.float32


async def test_a_long_list_goes_in_chunks_and_an_empty_one_has_no_rows(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(3, 320, 512).tolist()
    ids, out = tmp_path / "ids.json", tmp_path / "o.npz"
    ids.write_text(json.dumps([tokens, [], tokens[:100]]))
    await eval_logits(str(TINY), ids, out, "numpy", batch=True)
    with np.load(out) as got:
        assert [got[f"logits_{i}"].shape for i in range(3)] == [(512, 320), (0, 320), (100, 320)]
        np.testing.assert_allclose(got["logits_0"][:100], got["logits_2"], atol=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "not a list of lists"),
        ("[[1], 2]", "entry 1 is not a list"),
        ('[["a"]]', "entry 0"),
        ("[[true]]", "entry 0"),
        ("[[-1]]", "outside the vocabulary"),
        ("[[320]]", r"outside 0\.\.319"),
        ("[", "is not JSON"),
    ],
)
async def test_a_file_that_holds_no_token_ids_says_where(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "ids.json").write_text(text)
    with pytest.raises(InvalidRequest, match=message):
        await eval_logits(str(TINY), tmp_path / "ids.json", tmp_path / "o.npz", "numpy")


async def test_more_shards_than_layers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text("[[1]]")
    with pytest.raises(InvalidRequest, match="4 layers: 1 to 4 shards"):
        await eval_logits(str(TINY), tmp_path / "ids.json", tmp_path / "o.npz", "numpy", shards=5)


async def test_perplexity_is_that_of_the_logits(tmp_path: Path) -> None:
    from exo.inference.checkpoints.open import open_checkpoint
    from exo.inference.text.load import load_tokenizer

    text = "the quick brown fox jumps over the lazy dog. hello world. " * 12
    (tmp_path / "text").write_text(text)
    result = await eval_perplexity(str(TINY), tmp_path / "text", "numpy")
    with open_checkpoint(TINY) as checkpoint:
        ids = load_tokenizer(checkpoint).encode_prompt(text)[:512]
    (tmp_path / "ids.json").write_text(json.dumps([ids]))
    await eval_logits(str(TINY), tmp_path / "ids.json", tmp_path / "o.npz", "numpy")
    with np.load(tmp_path / "o.npz") as file:
        logits = file["logits_0"].astype(np.float64)
    rows = logits[:-1] - np.log(np.exp(logits[:-1]).sum(axis=1, keepdims=True))
    assert len(ids) == result["figures"]["tokens"] + 1
    assert result["figures"]["nll"] == pytest.approx(
        -rows[np.arange(len(ids) - 1), ids[1:]].mean(), rel=1e-5
    )


async def test_a_text_too_short_to_measure_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("")
    with pytest.raises(InvalidRequest, match="at least 2"):
        await eval_perplexity(str(TINY), tmp_path / "text", "numpy")


async def test_perplexity_of_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"ELF\x00\xff\xfe")
    with pytest.raises(InvalidRequest, match=r"binary is not UTF-8 text \(byte 4\)"):
        await eval_perplexity(str(TINY), tmp_path / "binary", "numpy")


async def test_bench_gives_a_rate_for_each_size_and_says_how_far_it_is() -> None:
    said: list[tuple[str, int, int]] = []
    result = await bench(str(TINY), "numpy", (1, 2), (8, 16), lambda *a: said.append(a))
    assert {"decode_1", "decode_2", "prefill_8", "prefill_16", "load_seconds", "rss_mib"} == set(
        result["figures"]
    )
    assert all(value > 0 for value in result["figures"].values())
    assert said[0] == ("bench", 0, 4)
    assert said[-1] == ("bench", 4, 4)


async def test_bench_runs_the_layers_as_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[int, int]] = []
    loaded = evaluate.loaded

    @asynccontextmanager
    async def seen(*args: Any) -> AsyncIterator[evaluate.Stages]:
        async with loaded(*args) as stages:
            held.extend((shard.start_layer, shard.end_layer) for _, shard in stages.engines)
            yield stages

    monkeypatch.setattr(evaluate, "loaded", seen)
    result = await bench(str(TINY), "numpy", (2,), (8,), shards=3)
    assert (held, result["shards"]) == ([(0, 0), (1, 1), (2, 3)], 3)
    assert {"decode_2", "prefill_8"} < result["figures"].keys()


async def test_a_result_that_cannot_be_written_is_refused_before_anything_is_computed(
    tmp_path: Path,
) -> None:
    (tmp_path / "ids.json").write_text("[[1]]")
    for out in (tmp_path, tmp_path / "none" / "o.npz"):
        with pytest.raises(InvalidRequest) as refused:
            await eval_logits("no-such-model", tmp_path / "ids.json", out)
        assert refused.value.field == "out"


async def test_a_result_that_comes_to_nothing_leaves_no_file_and_keeps_the_one_there_was(
    tmp_path: Path,
) -> None:
    (tmp_path / "ids.json").write_text("[[320]]")
    (tmp_path / "old.npz").write_text("mine")
    for out in ("new.npz", "old.npz"):
        with pytest.raises(InvalidRequest, match="outside"):
            await eval_logits(str(TINY), tmp_path / "ids.json", tmp_path / out, "numpy")
    assert sorted(os.listdir(tmp_path)) == ["ids.json", "old.npz"]
    assert (tmp_path / "old.npz").read_text() == "mine"
