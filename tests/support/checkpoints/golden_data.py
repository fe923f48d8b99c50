"""Where the golden references lie and what they hold; see tests/golden/data/README.md."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).resolve().parents[2] / "golden" / "data"


@dataclass(frozen=True)
class Case:
    """A model small enough to run in milliseconds, and what transformers computes with it."""

    name: str
    checkpoint: Path
    reference: Path

    def load(self) -> dict[str, Any]:
        return _load(self.reference)

    def sequences(self) -> list[np.ndarray[Any, Any]]:
        values = self.load()
        return [values[f"ids_{i}"].astype(np.int64) for i in range(int(values["n_seqs"]))]


@lru_cache(maxsize=32)
def _load(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return dict(file)


def folder_cases() -> list[Case]:
    found = sorted(DATA.glob("*/config.json"))
    return [Case(p.parent.name, p.parent, p.parent / "reference.npz") for p in found]


def gguf_cases() -> list[Case]:
    return [
        Case(p.name, p, p.with_suffix(".npz")) for p in sorted((DATA / "tiny-gguf").glob("*.gguf"))
    ]


def all_cases() -> list[Case]:
    return folder_cases() + gguf_cases()
