"""Hugging Face folders, whole and broken."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import CONFIG, tensors, write_folder

from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.errors import CheckpointError, UnsupportedModel
from exo.inference.models import open_weights, read_config
from exo.inference.numpy.model import NumpyModel
from exo.inference.shard import Shard

INDEX = "model.safetensors.index.json"


def read_everything(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        weights = open_weights(checkpoint)
        shard = Shard.whole("m", weights.config.n_layers)
        weights.check(shard)
        NumpyModel(weights, shard)


@pytest.mark.parametrize("files", [1, 3])
def test_a_folder_gives_each_tensor_whatever_file_it_is_in(files: int, tmp_path: Path) -> None:
    write_folder(tmp_path, files=files)
    with open_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == set(tensors())
        for name, value in tensors().items():
            assert np.array_equal(checkpoint.tensor(name), value)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\b", "a\0b"]
)
def test_an_index_that_names_a_path_is_refused(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", files=2)
    write_folder(tmp_path / "other")
    (tmp_path / "outside.safetensors").write_bytes(
        (tmp_path / "other" / "model.safetensors").read_bytes()
    )
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not a file name"):
        open_checkpoint(folder)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match="outside the folder"):
        open_checkpoint(folder)


def test_the_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "snapshots" / "abc")
    (tmp_path / "blobs").mkdir()
    (folder / "model.safetensors").rename(tmp_path / "blobs" / "0123")
    (folder / "model.safetensors").symlink_to(Path("..") / ".." / "blobs" / "0123")
    read_everything(folder)


def test_a_tensor_the_index_promises_and_the_file_lacks_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, files=2)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.extra"] = "part-0.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"'model\.extra' is missing"):
        open_checkpoint(folder)


def test_a_file_the_index_names_and_the_folder_lacks_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, files=2)
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"part-1\.safetensors: no such file"):
        open_checkpoint(folder)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    values = tensors()
    del values["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(
        CheckpointError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' is missing"
    ):
        read_everything(write_folder(tmp_path, values=values))


def test_a_tensor_of_another_shape_tells_both_shapes(tmp_path: Path) -> None:
    values = tensors() | {"model.norm.weight": np.ones(31, np.float32)}
    with pytest.raises(
        CheckpointError, match=r"'model\.norm\.weight' has the shape \(31,\), expected \(32,\)"
    ):
        read_everything(write_folder(tmp_path, values=values))


def test_a_tensor_of_integers_names_its_type_and_what_is_supported(tmp_path: Path) -> None:
    values: dict[str, Any] = tensors() | {"model.norm.weight": np.ones(32, np.int64)}
    with pytest.raises(CheckpointError, match=r"is of type I64; supported: F64, F32, F16, BF16"):
        read_everything(write_folder(tmp_path, values=values))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        open_checkpoint(tmp_path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "nul", '"x"'])
def test_a_config_that_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: is not"):
        open_checkpoint(folder)


def test_an_unknown_family_names_itself_and_what_is_supported(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, CONFIG | {"model_type": "mamba2"})
    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(UnsupportedModel, match=r"'mamba2'.*supported: gemma2, "),
    ):
        read_config(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 1 << 40}, "n_layers is"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"hidden_size": "many"}, "hidden is 'many'"),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2}},
            "rope scaling 'dynamic' is not supported; supported:",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "lacks 'factor'"),
        ({"rope_theta": -1}, "rope theta -1"),
        ({"hidden_act": "relu6"}, "activation 'relu6' is not supported"),
        ({"rms_norm_eps": 0}, "norm_eps is 0"),
        ({"vocab_size": None}, "vocab is None"),
    ],
)
def test_a_configuration_that_makes_no_sense_says_which_field(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path, CONFIG | change)
    with open_checkpoint(folder) as checkpoint, pytest.raises(CheckpointError, match=message):
        read_config(checkpoint)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {k: v for k, v in CONFIG.items() if k != "num_attention_heads"})
    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(CheckpointError, match="lacks 'num_attention_heads'"),
    ):
        read_config(checkpoint)


def test_only_the_tensors_of_the_shard_are_read(tmp_path: Path) -> None:
    values = {
        n: v for n, v in tensors().items() if "layers.2" not in n and n != "model.norm.weight"
    }
    folder = write_folder(tmp_path, values=values)
    with open_checkpoint(folder) as checkpoint:
        weights = open_weights(checkpoint)
        NumpyModel(weights, Shard("m", 0, 1, 3))
        with pytest.raises(CheckpointError, match=r"layers\.2"):
            weights.check(Shard("m", 2, 2, 3))


def test_a_damaged_folder_is_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, files=2)
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    outcomes = set()
    for seed in range(120):
        rng = random.Random(seed)
        path = rng.choice(sorted(whole))
        data = bytearray(whole[path])
        if rng.random() < 0.3:
            data = data[: rng.randrange(len(data))]
        for _ in range(rng.choice([1, 3, 20]) if data else 0):
            data[rng.randrange(min(len(data), 3000))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            read_everything(folder)
            outcomes.add("read")
        except CheckpointError:
            outcomes.add("refused")
        path.write_bytes(whole[path])
    assert outcomes == {"read", "refused"}
