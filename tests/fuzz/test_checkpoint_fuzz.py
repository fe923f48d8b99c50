"""Damaged and hostile checkpoints: an error that names the thing; no crash, no hang, no flood, no
file from outside.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_data import DATA
from tiny_checkpoint import CONFIG, tensors, write_folder, write_gguf, write_tokenizer

from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.errors import CheckpointError
from exo.inference.models import read_config
from exo.inference.text.load import load_tokenizer

HERE = Path(__file__).parent
FUZZER = HERE.parent / "support" / "checkpoints" / "checkpoint_fuzz.py"


def tokenizer_beside(folder: Path) -> Path:
    """The golden folder of three files with an index, and a tokenizer of bytes."""
    for path in (DATA / "qwen3-qknorm-sharded").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return write_tokenizer(folder)


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_every_damaged_checkpoint_is_refused_in_words_or_runs(kind: str, tmp_path: Path) -> None:
    if kind == "gguf":
        source = DATA / "tiny-gguf" / "tiny-llama.Q4_0.gguf"
    else:
        (tmp_path / "source").mkdir()
        source = tokenizer_beside(tmp_path / "source")
    arguments = [sys.executable, str(FUZZER), str(source), str(tmp_path / "scratch"), "7", "250"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["damaged"] == 250
    assert 50 < figures["refused"] < 245  # the damage reaches both sides


def refused(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as error, open_checkpoint(path) as checkpoint:
        read_config(checkpoint)
        for name in checkpoint.tensors:
            checkpoint.tensor(name)
        load_tokenizer(checkpoint)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
)
def test_no_file_of_a_folder_may_be_a_link_out_of_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    folder = tokenizer_beside(tmp_path / "m")
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    refused(folder, f"'{name}' is a link to a place outside the folder")


def test_a_template_may_not_be_a_link_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    folder = tokenizer_beside(tmp_path / "m")
    (folder / "chat_template.jinja").symlink_to("/etc/hostname")
    refused(folder, "'chat_template.jinja' is a link")


def test_a_gguf_file_in_a_folder_may_not_be_a_link_out_of_it(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "m.gguf").symlink_to(tmp_path / "m.gguf")
    refused(tmp_path / "folder", "is a link to a place outside")
    assert open_checkpoint(tmp_path / "m.gguf").tensors  # a file that is named is taken as it is


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "m.gguf"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / name)
    refused(folder / name if name.endswith("gguf") else folder, "is not a file")


@pytest.mark.parametrize("name", ["\ud800.safetensors", "a\nb", "..", "a/b", "C:\\x", ""])
def test_an_index_names_files_and_nothing_else(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, files=2)
    weight_map = dict.fromkeys(tensors(), name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, "which is not a file name")


def test_a_pickle_is_named_and_what_to_do_instead(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(
        tmp_path,
        r"'pytorch_model\.bin' next to it is a pickle, which is never opened: save it as"
        r" safetensors",
    )


def safetensors_with(folder: Path, header: str, data: bytes = bytes(64)) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    raw = header.encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return folder


ENTRY = '"%s":{"dtype":"F32","shape":[8],"data_offsets":[%d,%d]}'


@pytest.mark.parametrize(
    "header",
    [
        "{" + ENTRY % ("a", 0, 32) + "," + ENTRY % ("b", 16, 48) + "}",  # one over the other
        "{" + ENTRY % ("a", 32, 64) + "}",  # a hole before it
        "{" + ENTRY % ("a", 0, 1 << 62) + "}",
        '{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,64]}}',
        '{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,64]}}',
        '{"a":' + "[" * 200_000,
        "[]",
        "",
    ],
)
def test_a_safetensors_header_that_cannot_be_is_refused(header: str, tmp_path: Path) -> None:
    refused(safetensors_with(tmp_path, header), "cannot be read as safetensors")


def test_a_header_length_of_exabytes_is_refused(tmp_path: Path) -> None:
    folder = safetensors_with(tmp_path, "{}")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 63) + bytes(64))
    refused(folder, "cannot be read as safetensors")


def gguf_header(
    n_tensors: int, values: bytes, n_values: int, table: bytes = b"", data: int = 0
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_values) + values + table
    return head + bytes(-len(head) % 32) + bytes(data)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(name: str, *dims: int, kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


PAIR = text("a") + struct.pack("<IB", 7, 1)
SPLIT = text("split.count") + struct.pack("<IH", 2, 3)
HOSTILE: list[tuple[bytes, str]] = [
    (gguf_header(0, PAIR * 2, 2), "key 'a' is there twice"),
    (gguf_header(0, SPLIT, 1), "one of 3 parts of a split model; merge them first"),
    (
        gguf_header(2, b"", 0, entry("a", 64) + entry("b", 64, offset=128), 512),
        "'a' and 'b' share bytes",
    ),
    (
        gguf_header(2, b"", 0, entry("a", 64) + entry("a", 64, offset=256), 512),
        "'a' is there twice",
    ),
    (gguf_header(1, b"", 0, entry("a", 1 << 32, 1 << 32, 1 << 32), 64), "truncated: tensor 'a'"),
    (gguf_header(1, b"", 0, entry("a", 8, offset=(1 << 64) - 32), 64), "truncated: tensor 'a'"),
    (gguf_header(1, b"", 0, entry("a", 0), 64), "shape"),
    (gguf_header(1, b"", 0, entry("a", 8, kind=9999), 64), "ggml type 9999"),
    (gguf_header(1, b"", 0, entry("x" * 5000, 8), 64), "a name of 5000 characters"),
    (
        gguf_header(0, text("a") + struct.pack("<IIQ", 9, 9, 1 << 60) + bytes(64), 1),
        "unknown value type 9",
    ),
    (gguf_header(0, text("a") + struct.pack("<IIQ", 9, 4, 1 << 62) + bytes(64), 1), "truncated"),
    (gguf_header(0, text("a") + struct.pack("<IIQ", 9, 8, 1 << 63) + bytes(64), 1), "truncated"),
    (
        gguf_header(0, text("y" * 100_000) + struct.pack("<IB", 99, 1) + bytes(64), 1),
        "unknown value type 99",
    ),
]


@pytest.mark.parametrize(("content", "match"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_gguf_file_made_to_harm_is_refused_in_few_words(
    content: bytes, match: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    refused(path, match)


@pytest.mark.parametrize(
    "changes", [{"n": 1 << 24}, {"ctx": 1 << 31}], ids=["vocabulary", "context"]
)
def test_a_large_claim_takes_no_memory_before_it_is_checked(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    config = {
        **CONFIG,
        "vocab_size": changes.get("n", 40),
        "max_position_embeddings": changes.get("ctx", 64),
    }
    folder = write_folder(tmp_path, config)
    with open_checkpoint(folder) as checkpoint:
        assert read_config(checkpoint).vocab == config["vocab_size"]
        if "n" in changes:
            from exo.inference.models import open_weights

            with pytest.raises(CheckpointError, match="has the shape"):
                open_weights(checkpoint).source("embed")
        np.testing.assert_equal(len(checkpoint.tensors), len(tensors()))
