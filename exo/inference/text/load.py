"""`load_tokenizer`: the tokenizer of a checkpoint, whatever its format."""

from __future__ import annotations

from exo.inference.checkpoints.checkpoint import Checkpoint
from exo.inference.text.gguf import from_gguf
from exo.inference.text.huggingface import from_folder
from exo.inference.text.tokenizer import Tokenizer


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Raises `CheckpointError` where there is none, or one of a kind that cannot be built."""
    return from_gguf(checkpoint) if checkpoint.FORMAT == "gguf" else from_folder(checkpoint.path)
