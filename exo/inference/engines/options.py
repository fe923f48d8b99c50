"""`EngineOptions`: what a user may choose about an engine. One record, the same for every engine.

The command line fills it in, `NodeSettings` carries it, and `create_engine` hands it on whole, so
that a new option needs a field here and the line that uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

WeightFormat = Literal["auto", "stored", "float32", "8bit", "4bit"]
DEFAULT_CACHE_BYTES: Final = 20 << 30


def default_cache_dir() -> Path:
    """Where a program that names no folder keeps downloaded and converted models."""
    return Path.home() / ".cache" / "exo"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Each engine uses what applies to it: numpy has no slots and converts nothing.

    cache_dir: the node's cache folder; converted weights go to `onnx` in it. None: see
        `default_cache_dir`.
    cache_bytes: how much converted weights may take before the least recently used ones go.
    weight_format: `stored` keeps what the file has; `auto` decides by size.
    kv_budget: bytes for keys and values; None: half of the memory left after the weights.
    max_sequences: slots of the KV cache, prefixes kept for reuse included.
    threads: threads of one pass; None: as many as the container may use.
    keep_blas_threads: leave the number of threads of numpy's matrix products as it is, because
        the user has set it for the whole process.
    """

    cache_dir: Path | None = None
    cache_bytes: int = DEFAULT_CACHE_BYTES
    weight_format: WeightFormat = "auto"
    kv_budget: int | None = None
    max_sequences: int = 64
    threads: int | None = None
    keep_blas_threads: bool = False

    @classmethod
    def split(cls, values: dict[str, Any]) -> tuple[EngineOptions, dict[str, Any]]:
        """The options among keyword arguments, and the other arguments."""
        names = {each.name for each in fields(cls)}
        chosen = {name: value for name, value in values.items() if name in names}
        if chosen.get("cache_dir") is not None:
            chosen["cache_dir"] = Path(chosen["cache_dir"])
        return cls(**chosen), {k: v for k, v in values.items() if k not in names}

    @property
    def conversions(self) -> Path:
        """The folder of converted weights."""
        return (self.cache_dir or default_cache_dir()) / "onnx"
