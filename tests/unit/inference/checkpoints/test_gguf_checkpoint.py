"""GGUF files, whole and broken."""

from __future__ import annotations

import random
import resource
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from golden_data import DATA
from tiny_checkpoint import write_gguf

from exo.inference.checkpoints.dequantize import BLOCKED, block_layout
from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.errors import CheckpointError, UnsupportedModel
from exo.inference.models import open_weights
from exo.inference.numpy.model import NumpyModel
from exo.inference.shard import Shard
from exo.inference.text.load import load_tokenizer

SAMPLE = DATA / "tiny-gguf" / "tiny-llama.Q4_1.gguf"


def read_everything(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        weights = open_weights(checkpoint)
        shard = Shard.whole("m", weights.config.n_layers)
        weights.check(shard)
        NumpyModel(weights, shard)
        load_tokenizer(checkpoint)


@pytest.mark.parametrize("name", BLOCKED)
def test_every_block_format_becomes_what_the_gguf_package_makes_of_it(
    name: str, tmp_path: Path
) -> None:
    kind = gguf.GGMLQuantizationType[name]
    values, n_bytes = block_layout(name)
    raw = np.random.default_rng(1).integers(0, 64, (3, 2 * n_bytes), dtype=np.uint8)
    path = write_gguf(tmp_path / "m.gguf", {"extra": (raw, kind)})
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.info("extra").shape == (3, 2 * values)
        want = gguf.quants.dequantize(raw, kind)
        assert np.array_equal(checkpoint.tensor("extra"), want)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_plain_types_are_widened_to_float32(dtype: type, tmp_path: Path) -> None:
    value = np.arange(64, dtype=dtype).reshape(2, 32) / 7
    path = write_gguf(tmp_path / "m.gguf", {"extra": (value, None)})
    with open_checkpoint(path) as checkpoint:
        assert np.array_equal(checkpoint.tensor("extra"), value.astype(np.float32))


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path: Path) -> None:
    value = np.array([[1.0, -2.5, 0.0, 3.140625] * 8], dtype=np.float32)
    raw = gguf.quants.quantize(value, gguf.GGMLQuantizationType.BF16)
    path = write_gguf(tmp_path / "m.gguf", {"extra": (raw, gguf.GGMLQuantizationType.BF16)})
    with open_checkpoint(path) as checkpoint:
        assert np.array_equal(checkpoint.tensor("extra"), value)


def test_a_truncated_file_names_the_missing_bytes(tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(SAMPLE.read_bytes()[:-1000])
    with pytest.raises(
        CheckpointError,
        match=r"short\.gguf: truncated: tensor .* ends at byte .* bytes are missing",
    ):
        open_checkpoint(path)


def test_a_file_of_another_kind_says_how_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CheckpointError, match="not a GGUF file: it begins with"):
        open_checkpoint(path)


def test_a_file_that_is_not_there_or_empty_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(tmp_path / "none.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(CheckpointError, match="empty"):
        open_checkpoint(tmp_path / "empty.gguf")


def test_a_path_under_a_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_checkpoint(tmp_path / "file" / "x.gguf")


def test_counts_beyond_the_file_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for tensors, values in ((1 << 62, 0), (0, 1 << 62), (1 << 63, 1 << 63)):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, values) + bytes(64))
        with pytest.raises(CheckpointError, match="more than its"):
            open_checkpoint(path)


def test_a_string_longer_than_the_file_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60) + bytes(64))
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(path)


def test_a_version_we_cannot_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 9, 0, 0))
    with pytest.raises(CheckpointError, match="version 9 is not supported; supported: 2, 3"):
        open_checkpoint(path)


def test_an_unknown_architecture_names_itself_and_what_is_supported(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(str(path), "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with (
        open_checkpoint(path) as checkpoint,
        pytest.raises(UnsupportedModel, match=r"'mamba'.*supported: .*llama") as e,
    ):
        open_weights(checkpoint)
    assert "qwen3" in e.value.supported


def test_a_number_of_layers_out_of_reason_is_refused_before_anything_is_made_of_it(
    tmp_path: Path,
) -> None:
    path = write_gguf(tmp_path / "x.gguf", num_hidden_layers=1 << 31)
    with (
        open_checkpoint(path) as checkpoint,
        pytest.raises(CheckpointError, match="n_layers is 2147483648"),
    ):
        open_weights(checkpoint)


def test_a_weight_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    value = np.full((1, 32), np.nan, np.float32)
    path = write_gguf(tmp_path / "x.gguf", {"extra": (value, None)})
    with (
        open_checkpoint(path) as checkpoint,
        pytest.raises(CheckpointError, match="'extra' has values that are not"),
    ):
        checkpoint.tensor("extra")


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.path == tmp_path / "m.gguf"
    write_gguf(tmp_path / "n.gguf")
    with pytest.raises(CheckpointError, match="several"):
        open_checkpoint(tmp_path)


def test_the_content_hash_follows_the_bytes_not_the_place(tmp_path: Path) -> None:
    a, b = write_gguf(tmp_path / "a.gguf"), tmp_path / "b.gguf"
    b.write_bytes(a.read_bytes())
    with open_checkpoint(a) as x, open_checkpoint(b) as y:
        assert x.content_hash() == y.content_hash()
    b.write_bytes(a.read_bytes()[:-1] + b"\x01")
    with open_checkpoint(a) as x, open_checkpoint(b) as y:
        assert x.content_hash() != y.content_hash()


def damaged(seed: int) -> bytes:
    """The sample cut short, or with bytes or whole numbers in its header overwritten."""
    rng, data = random.Random(seed), bytearray(SAMPLE.read_bytes())
    if rng.random() < 0.2:
        return bytes(data[: rng.randrange(len(data))])
    header = len(data) - 85_000
    for _ in range(rng.choice([1, 1, 2, 5, 50])):
        at = rng.randrange(header if rng.random() < 0.9 else len(data) - 8)
        if rng.random() < 0.3:
            data[at : at + 8] = rng.choice([b"\xff" * 8, (1 << 31).to_bytes(8, "little"), bytes(8)])
        else:
            data[at] = rng.randrange(256)
    return bytes(data)


def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    outcomes = set()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(100):
        path.write_bytes(damaged(seed))
        try:
            read_everything(path)
            outcomes.add("read")
        except CheckpointError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
