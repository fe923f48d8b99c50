"""What a family makes of config.json where keys are absent, double or contradict each other: as
transformers does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import CONFIG, tensors, write_folder

from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.errors import CheckpointError
from exo.inference.evaluate import loaded
from exo.inference.models import ModelConfig, open_weights, read_config
from exo.inference.models.rope import inverse_frequencies

LONGROPE = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def config_of(folder: Path, **changes: Any) -> ModelConfig:
    with open_checkpoint(write_folder(folder, {**CONFIG, **changes})) as checkpoint:
        return read_config(checkpoint)


@pytest.mark.parametrize(
    ("family", "turned"), [("llama", 8), ("qwen2", 8), ("mistral", 8), ("phi3", 4)]
)
def test_only_phi3_heeds_a_partial_rotary_factor(family: str, turned: int, tmp_path: Path) -> None:
    assert config_of(tmp_path, model_type=family, partial_rotary_factor=0.5).rope.dims == turned


def test_phi3_without_an_original_context_takes_that_of_its_class(tmp_path: Path) -> None:
    rope = config_of(
        tmp_path, model_type="phi3", rope_scaling=LONGROPE, max_position_embeddings=8192
    ).rope
    assert rope.original_context == 4096
    assert rope.scale == pytest.approx((1 + np.log(2) / np.log(4096)) ** 0.5)


def test_a_factor_of_longrope_goes_before_the_ratio_of_contexts(tmp_path: Path) -> None:
    scaling = {**LONGROPE, "factor": 4.0}
    rope = config_of(
        tmp_path, model_type="phi3", rope_scaling=scaling, max_position_embeddings=8192
    ).rope
    assert rope.scale == pytest.approx((1 + np.log(4) / np.log(4096)) ** 0.5)


def test_yarn_without_a_factor_takes_the_ratio_of_contexts(tmp_path: Path) -> None:
    scaling = {"type": "yarn", "factor": None, "original_max_position_embeddings": 16}
    by_ratio = config_of(tmp_path / "a", rope_scaling=scaling, max_position_embeddings=64).rope
    given = config_of(
        tmp_path / "b", rope_scaling={**scaling, "factor": 4.0}, max_position_embeddings=64
    ).rope
    assert by_ratio == given


def test_rope_scaling_goes_before_rope_parameters(tmp_path: Path) -> None:
    both = {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "default"},
    }
    assert config_of(tmp_path, **both).rope.divisors == (2.0,) * 4


def test_rope_parameters_by_kind_of_layer_are_taken_where_they_are_alike(tmp_path: Path) -> None:
    one = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    alike = {"full_attention": one, "sliding_attention": one}
    assert config_of(tmp_path / "a", rope_parameters=alike).rope.divisors == (2.0,) * 4
    with pytest.raises(CheckpointError, match="differ between layers"):
        config_of(
            tmp_path / "b", rope_parameters={**alike, "full_attention": {**one, "factor": 3.0}}
        )


def test_quantised_weights_are_refused_by_the_name_of_their_method(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="quantised by 'gptq' are not supported; take the unquantised model"
    ):
        config_of(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})


def test_frequencies_are_the_powers_rounded_to_float32(tmp_path: Path) -> None:
    rope = config_of(tmp_path, head_dim=128, rope_theta=1e6).rope
    exact = 1e6 ** -(np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(inverse_frequencies(rope), exact, rtol=2e-7)


@pytest.mark.parametrize(
    ("family", "eos"), [("llama", (2,)), ("mistral", (2,)), ("phi3", (32000,)), ("gemma2", (1,))]
)
def test_an_absent_eos_is_the_one_of_the_family(
    family: str, eos: tuple[int, ...], tmp_path: Path
) -> None:
    config = {k: v for k, v in CONFIG.items() if k != "eos_token_id"}
    with open_checkpoint(write_folder(tmp_path, {**config, "model_type": family})) as checkpoint:
        assert read_config(checkpoint).eos_ids == eos


def test_a_head_beside_a_tied_embedding_is_used(tmp_path: Path) -> None:
    values = tensors()
    values["lm_head.weight"] = values["model.embed_tokens.weight"] * 2
    with open_checkpoint(write_folder(tmp_path, CONFIG, values)) as checkpoint:
        np.testing.assert_array_equal(
            open_weights(checkpoint).tensor("head"), values["lm_head.weight"]
        )


def test_a_tied_checkpoint_may_store_the_head_alone(tmp_path: Path) -> None:
    values = tensors()
    values["lm_head.weight"] = values.pop("model.embed_tokens.weight")
    with open_checkpoint(write_folder(tmp_path, CONFIG, values)) as checkpoint:
        np.testing.assert_array_equal(
            open_weights(checkpoint).tensor("embed"), values["lm_head.weight"]
        )


async def test_several_sequences_of_a_batch_may_outgrow_the_short_factors(tmp_path: Path) -> None:
    scaling = {**LONGROPE, "factor": 2.0}
    config = {
        **CONFIG,
        "model_type": "phi3",
        "num_key_value_heads": 4,
        "rope_scaling": scaling,
        "original_max_position_embeddings": 600,
        "max_position_embeddings": 2048,
    }
    values: dict[str, Any] = {}
    for name, value in tensors({**CONFIG, "num_key_value_heads": 4}).items():
        stem = name.replace("q_proj", "qkv_proj").replace("gate_proj", "gate_up_proj")
        if "k_proj" in name or "v_proj" in name or "up_proj" in name:
            continue
        values[stem] = np.concatenate(
            [value] * {"qkv": 3, "gat": 2}.get(stem.split(".")[-2][:3], 1)
        )
    folder = write_folder(tmp_path, config, values)
    rng = np.random.default_rng(0)
    sequences = {f"s{i}": rng.integers(0, 40, 601 + i) for i in range(3)}
    async with loaded(folder, "numpy", shards=2) as stages:
        together = await stages.prefill(sequences)
        for name, tokens in sequences.items():
            await stages.release(name)
            alone = (await stages.prefill({f"{name} alone": tokens}))[f"{name} alone"]
            np.testing.assert_allclose(together[name], alone, atol=1e-4)
