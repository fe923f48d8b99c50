"""Damages a checkpoint in many ways and uses what comes of it, in a process of its own with little
memory.

    python checkpoint_fuzz.py CHECKPOINT SCRATCH SEED COUNT

Ends with 0 and a line of JSON when every damaged checkpoint was either refused by one of our errors
or ran; otherwise with the traceback of the first that was not, whose copy stays in SCRATCH.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import resource
import shutil
import signal
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.engines.inference_engine import Step
from exo.inference.errors import CheckpointError, ExoError
from exo.inference.evaluate import loaded
from exo.inference.text.chat_template import encode_chat
from exo.inference.text.load import load_tokenizer

MEMORY = 3 << 30
SECONDS = 20  # for one checkpoint; they take milliseconds
WHOLE = [
    0,
    1,
    255,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    1 << 62,
    1 << 63,
    (1 << 64) - 32,
    (1 << 64) - 1,
]
VALUES = [
    b"0",
    b"-1",
    b"1e400",
    b"NaN",
    b"9" * 20,
    b"[]",
    b"{}",
    b"null",
    b'"x"',
    b"1.5",
    b"true",
    b"[" * 9 + b"]" * 9,
    b'"\\ud800"',
    b"4294967296",
    b'"../../etc/passwd"',
    b'"/etc/passwd"',
    b'"\\u0000"',
]
JSON_VALUE = re.compile(rb'-?\d+(?:\.\d+)?|true|false|null|"[^"]*"')
HEADER = 30_000


def damaged(rnd: random.Random, name: str, content: bytes) -> bytes:
    for _ in range(rnd.choice([1, 1, 1, 2, 5, 30])):
        at = (
            rnd.randrange(min(len(content), HEADER) if rnd.random() < 0.8 else len(content))
            if content
            else 0
        )
        content = _once(rnd, name, content, at)
    return content


def _once(rnd: random.Random, name: str, b: bytes, at: int) -> bytes:
    if name.endswith(".json") and rnd.random() < 0.6:
        found = list(JSON_VALUE.finditer(b))[:300]
        if found:
            one = rnd.choice(found)
            return b[: one.start()] + rnd.choice(VALUES) + b[one.end() :]
    new = {
        "cut": lambda: b[:at],
        "flip": lambda: b[:at] + bytes([(b[at] if b else 0) ^ 1 << rnd.randrange(8)]) + b[at + 1 :],
        "size": lambda: b[:at] + struct.pack("<Q", rnd.choice(WHOLE)) + b[at + 8 :],
        "count": lambda: b[:at] + struct.pack("<I", rnd.choice(WHOLE[:5])) + b[at + 4 :],
        "float": lambda: (
            b[:at]
            + struct.pack("<f", rnd.choice([float("nan"), float("inf"), -1e38]))
            + b[at + 4 :]
        ),
        "remove": lambda: b[:at] + b[at + rnd.randrange(1, 64) :],
        "double": lambda: b[:at] + b[at : at + rnd.randrange(1, 200)] + b[at:],
    }
    return new[rnd.choice(list(new))]()


async def use(path: Path) -> None:
    """Everything that a node does with a checkpoint. Raises what the checkpoint deserves."""
    with open_checkpoint(path) as checkpoint:
        try:
            tokenizer = load_tokenizer(checkpoint)
        except CheckpointError:
            tokenizer = None  # such a model still answers to token ids
    if tokenizer is not None:
        tokenizer.decode(tokenizer.encode("hi <|im_end|> there", allow_special=True))
        tokenizer.decode(range(400))
    async with loaded(path, "numpy") as stages:
        await stages.infer([Step("a", np.array([5, 6, 7]), 0)])
    if tokenizer is not None:
        encode_chat(tokenizer, [{"role": "user", "content": "hi"}])


def main(source: Path, scratch: Path, seed: int, count: int) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    files = {
        p.name: p.read_bytes() for p in ([source] if source.is_file() else sorted(source.iterdir()))
    }
    files = {name: content for name, content in files.items() if not name.endswith((".npz", ".md"))}
    refused = 0
    for k in range(count):
        rnd = random.Random(seed * 1_000_000 + k)
        broken = rnd.choice(sorted(files))
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        for name, content in files.items():
            (scratch / name).write_bytes(damaged(rnd, name, content) if name == broken else content)
        signal.alarm(SECONDS)
        try:
            with np.errstate(all="ignore"):
                asyncio.run(use(scratch / source.name if source.is_file() else scratch))
        except ExoError as error:
            refused += 1
            if len(str(error)) >= 2000:
                raise RuntimeError(
                    f"{broken}: a message of {len(str(error))} characters"
                ) from error
        finally:
            signal.alarm(0)
    return {"damaged": count, "refused": refused}


if __name__ == "__main__":
    print(
        json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
    )
