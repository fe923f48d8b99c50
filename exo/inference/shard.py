"""`Shard`: a contiguous range of one model's layers. Pure data; knows no weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """Layers `start_layer` to `end_layer`, both included, of a model of `n_layers`.

    Raises `ValueError`, naming the field, when the range is empty or outside the model.
    """

    model_id: str
    start_layer: int
    end_layer: int
    n_layers: int

    def __post_init__(self) -> None:
        if self.n_layers < 1:
            raise ValueError(f"n_layers: {self.n_layers} must be at least 1")
        if not 0 <= self.start_layer <= self.end_layer < self.n_layers:
            raise ValueError(
                f"start_layer..end_layer: {self.start_layer}..{self.end_layer} is not a range"
                f" within 0..{self.n_layers - 1} of {self.model_id!r}"
            )

    @classmethod
    def whole(cls, model_id: str, n_layers: int) -> Shard:
        return cls(model_id, 0, n_layers - 1, n_layers)

    def is_first_layer(self) -> bool:
        return self.start_layer == 0

    def is_last_layer(self) -> bool:
        return self.end_layer == self.n_layers - 1

    def get_layer_count(self) -> int:
        return self.end_layer - self.start_layer + 1
