"""`ModelFootprint`: how much memory each part of a model takes. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFootprint:
    """Bytes of one model, caches included.

    layer_bytes: one number per layer: its weights, and the KV cache reserved for it.
    first_bytes: what the stage with the first layer holds as well (token embedding).
    last_bytes: what the stage with the last layer holds as well (norm and output head).
    shared_bytes: the part of both that is held once where one stage has both ends (tied
        embeddings).
    token_bytes: what one more token of a sequence takes in each layer.
    Raises `ValueError` naming the field.
    """

    model_id: str
    layer_bytes: tuple[int, ...]
    model_hash: str = ""
    first_bytes: int = 0
    last_bytes: int = 0
    shared_bytes: int = 0
    token_bytes: int = 0

    def __post_init__(self) -> None:
        if not self.layer_bytes:
            raise ValueError("layer_bytes: a model has at least one layer")
        if any(size < 0 for size in self.layer_bytes):
            raise ValueError("layer_bytes: a layer cannot take less than 0 bytes")
        if self.token_bytes < 0:
            raise ValueError("token_bytes: a token cannot take less than 0 bytes")
        if not 0 <= self.shared_bytes <= min(self.first_bytes, self.last_bytes):
            raise ValueError(
                f"shared_bytes: {self.shared_bytes} is more than first_bytes or last_bytes, or"
                " negative"
            )

    @classmethod
    def uniform(
        cls,
        model_id: str,
        n_layers: int,
        layer_bytes: int,
        *,
        first_bytes: int = 0,
        last_bytes: int = 0,
        shared_bytes: int = 0,
        token_bytes: int = 0,
        model_hash: str = "",
    ) -> ModelFootprint:
        return cls(
            model_id=model_id,
            layer_bytes=(layer_bytes,) * n_layers,
            model_hash=model_hash,
            first_bytes=first_bytes,
            last_bytes=last_bytes,
            shared_bytes=shared_bytes,
            token_bytes=token_bytes,
        )

    @property
    def n_layers(self) -> int:
        return len(self.layer_bytes)

    def range_bytes(self, start: int, end: int) -> int:
        """Memory of layers `start` to `end`, both included, and of what the ends hold as well."""
        total = sum(self.layer_bytes[start : end + 1])
        if start == 0:
            total += self.first_bytes
        if end == self.n_layers - 1:
            total += self.last_bytes
            if start == 0:
                total -= self.shared_bytes
        return total
