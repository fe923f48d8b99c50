"""`ServedModel`: what the node knows of its model without the weights: shape, memory, tokenizer,
end tokens. Reads files.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from exo.inference.checkpoints.checkpoint import Checkpoint
from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.checkpoints.safetensors import read_json
from exo.inference.checkpoints.tensors import RawTensor
from exo.inference.engines import dummy
from exo.inference.engines.factory import engine_class
from exo.inference.errors import CheckpointError, InvalidRequest
from exo.inference.models import ModelConfig, read_config
from exo.inference.text.load import load_tokenizer
from exo.inference.text.tokenizer import Tokenizer
from exo.topology import ModelFootprint

log = logging.getLogger(__name__)
# KV cache that the plan sets aside for each layer, in tokens. Engines use more where they can.
RESERVED_TOKENS: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """ends: token ids that end an answer. created: seconds since 1970 of the file."""

    model_id: str
    path: Path
    n_layers: int
    context_length: int
    vocab: int
    ends: frozenset[int]
    tokenizer: Tokenizer | None
    footprint: ModelFootprint
    created: int = 0

    def require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidRequest(
                f"model {self.model_id!r} has no tokenizer: it takes token ids only", field="model"
            )
        return self.tokenizer


class ShapeOnly(Checkpoint):
    """A Hugging Face folder whose weights are not here yet: its configuration, and no tensors."""

    FORMAT: ClassVar[Literal["safetensors"]] = "safetensors"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.metadata = read_json(path / "config.json")

    def raw(self, name: str) -> RawTensor:
        raise CheckpointError(f"tensor {name!r} has not been fetched", path=str(self.path))

    def files(self) -> tuple[Path, ...]:
        return (self.path / "config.json",)

    def close(self) -> None:
        pass


def read_model(
    model_id: str,
    path: Path,
    engine: str,
    *,
    revision: str = "",
    context_length: int | None = None,
    weights_here: bool = True,
) -> ServedModel:
    """Blocks on files. Raises `CheckpointError`."""
    if engine == "dummy" and path.name == dummy.MODEL and not path.exists():
        return made_up_model(model_id)
    with open_checkpoint(path) if weights_here else ShapeOnly(path) as checkpoint:
        config = read_config(checkpoint)
        tokenizer = _tokenizer(checkpoint)
        return ServedModel(
            model_id=model_id,
            path=path,
            n_layers=config.n_layers,
            context_length=min(config.context_length, context_length or config.context_length),
            vocab=config.vocab,
            ends=frozenset(config.eos_ids),
            tokenizer=tokenizer,
            footprint=footprint(model_id, config, engine, revision or fingerprint(checkpoint)),
            created=int(path.stat().st_mtime),
        )


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """None where it cannot be built: the model then takes token ids only."""
    try:
        return load_tokenizer(checkpoint)
    except CheckpointError as error:
        log.warning("no tokenizer: %s", error)
        return None


def made_up_model(model_id: str) -> ServedModel:
    """The dummy engine's: bytes for tokens, no weights."""
    config = dummy.CONFIG
    return ServedModel(
        model_id=model_id,
        path=Path(dummy.MODEL),
        n_layers=config.n_layers,
        context_length=config.context_length,
        vocab=config.vocab,
        ends=frozenset(config.eos_ids),
        tokenizer=dummy.byte_tokenizer(),
        footprint=ModelFootprint.uniform(model_id, config.n_layers, 1),
    )


def footprint(model_id: str, config: ModelConfig, engine: str, model_hash: str) -> ModelFootprint:
    """From the shape alone: no tensor is read. Raises `InvalidRequest` for an unknown engine."""
    runner = engine_class(engine).RUNNER
    per_weight = runner.WEIGHT_BYTES
    heads = (2 * config.heads + 2 * config.kv_heads) * config.head_dim
    weights = config.hidden * (heads + 3 * config.ffn + 2)
    token = config.kv_values_per_token_and_layer * runner.KV_ITEM_BYTES
    cache = token * min(RESERVED_TOKENS, config.context_length)
    table = int(config.vocab * config.hidden * per_weight)
    return ModelFootprint.uniform(
        model_id,
        config.n_layers,
        # Layers of no size could not be shared out evenly.
        max(1, int(weights * per_weight) + cache),
        first_bytes=table,
        last_bytes=table,
        shared_bytes=table if config.tied else 0,
        token_bytes=token,
        model_hash=model_hash,
    )


def fingerprint(checkpoint: Checkpoint) -> str:
    """Tells models apart at the cost of reading a header: a hash of the table of tensors, and of
    the settings that fit in a line each.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, info in sorted(checkpoint.tensors.items()):
        digest.update(f"{name} {info.shape} {info.dtype} {info.n_bytes}\n".encode())
    for key, value in sorted(checkpoint.metadata.items(), key=lambda item: str(item[0])):
        digest.update(f"{key}={_short(value)}\n".encode())
    return digest.hexdigest()


def _short(value: Any) -> str:
    return (
        repr(value)[:200] if isinstance(value, str | int | float | bool) else type(value).__name__
    )
