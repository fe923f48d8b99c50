"""The families by name, and the way from a checkpoint's metadata to its `ModelConfig`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from exo.inference.checkpoints.checkpoint import Checkpoint
from exo.inference.checkpoints.safetensors import read_json
from exo.inference.errors import CheckpointError, UnsupportedModel
from exo.inference.models.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What one architecture needs: how to read its configuration, and its tensor names by canonical
    name.

    hf_type: `model_type` in config.json; gguf_arch: `general.architecture`.
    hf_names, gguf_names: canonical name -> template with `{i}` for the layer. Parts of one packed
        tensor have the same template; they follow each other in its rows.
    norm_offset: added to norm weights of safetensors (gemma stores w for a factor of 1 + w; GGUF
        stores 1 + w).
    gguf_interleaved: q and k rows of GGUF files are in llama.cpp's order (neighbouring pairs rotate
        together).
    """

    name: str
    hf_type: str
    gguf_arch: str | None
    from_hf: Callable[[dict[str, Any]], ModelConfig]
    from_gguf: Callable[[Checkpoint], ModelConfig] | None
    hf_names: Mapping[str, str]
    gguf_names: Mapping[str, str] = field(default_factory=dict)
    norm_offset: float = 0.0
    gguf_interleaved: bool = False


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    _FAMILIES[family.name] = family
    return family


def supported_families() -> tuple[str, ...]:
    return tuple(sorted(_FAMILIES))


def family_of(checkpoint: Checkpoint) -> Family:
    """Raises `UnsupportedModel`, naming the family and the ones that are supported."""
    key = "general.architecture" if checkpoint.FORMAT == "gguf" else "model_type"
    kind = checkpoint.metadata.get(key)
    for family in _FAMILIES.values():
        if kind is not None and kind == (
            family.gguf_arch if checkpoint.FORMAT == "gguf" else family.hf_type
        ):
            return family
    raise UnsupportedModel(
        f"{key} is {kind!r}, a family we cannot run",
        path=str(checkpoint.path),
        supported=supported_families(),
    )


def _with_generation_eos(checkpoint: Checkpoint, config: ModelConfig) -> ModelConfig:
    """generation_config.json lists every token that ends an answer; config.json often lists only
    one.
    """
    path = checkpoint.path / "generation_config.json"
    if not path.is_file():
        return config
    value = read_json(path).get("eos_token_id")
    more = (
        ()
        if value is None
        else tuple(int(v) for v in (value if isinstance(value, list) else [value]))
    )
    return replace(config, eos_ids=tuple(dict.fromkeys((*config.eos_ids, *more))))


def read_config(checkpoint: Checkpoint) -> ModelConfig:
    """Raises `UnsupportedModel` for an unknown family, `CheckpointError` for a configuration that
    makes no sense.
    """
    family = family_of(checkpoint)
    try:
        # Numbers that make no sense overflow somewhere.
        with np.errstate(over="raise", invalid="raise"):
            return _read(checkpoint, family)
    except KeyError as error:
        raise CheckpointError(
            f"the configuration lacks {error.args[0]!r}", path=str(checkpoint.path)
        ) from error
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"the configuration cannot be used: {error}", path=str(checkpoint.path)
        ) from error


def _read(checkpoint: Checkpoint, family: Family) -> ModelConfig:
    if checkpoint.FORMAT == "safetensors":
        if quantised := checkpoint.metadata.get("quantization_config"):
            kind = quantised.get("quant_method", "unknown")
            raise ValueError(
                f"weights quantised by {kind!r} are not supported; take the unquantised model or a"
                " GGUF file"
            )
        config = family.from_hf(dict(checkpoint.metadata))
        if (
            config.tied
            and {family.hf_names["embed"], family.hf_names["head"]} <= checkpoint.tensors.keys()
        ):
            # transformers ties them only where they are equal, and then it makes no difference.
            config = replace(config, tied=False)
        return _with_generation_eos(checkpoint, config)
    assert family.from_gguf is not None  # family_of matched its gguf_arch
    return family.from_gguf(checkpoint)
