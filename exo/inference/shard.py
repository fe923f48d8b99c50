"""`Shard`: a contiguous range of one model's layers. Pure data; knows no weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """Layers `start_layer` to `end_layer`, both included, of a model of `n_layers`.

    Raises `ValueError` naming the field when the range is empty or outside the model.
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

    def overlaps(self, other: Shard) -> bool:
        """Whether both hold some layer of the same model."""
        return (
            self.model_id == other.model_id
            and self.start_layer <= other.end_layer
            and other.start_layer <= self.end_layer
        )

    def to_dict(self) -> dict[str, str | int]:
        return {
            "model_id": self.model_id,
            "start_layer": self.start_layer,
            "end_layer": self.end_layer,
            "n_layers": self.n_layers,
        }

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> Shard:
        """Raises `ValueError` naming the first field that is missing or of the wrong type."""
        model_id = data.get("model_id")
        if not isinstance(model_id, str):
            raise ValueError(f"model_id: expected a string, got {model_id!r}")
        numbers = []
        for name in ("start_layer", "end_layer", "n_layers"):
            value = data.get(name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{name}: expected an integer, got {value!r}")
            numbers.append(value)
        return cls(model_id, *numbers)
