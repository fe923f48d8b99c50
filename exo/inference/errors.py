"""Errors of requests, models and checkpoints, by whose fault they are.

    ExoError
    +-- InvalidRequest        the caller's: `field` names what is wrong
    |   +-- ModelNotFound     `available` lists the ones there are
    |   +-- ContextExceeded
    +-- CheckpointError       the file's: `path` names it
    |   +-- UnsupportedModel  `supported` lists what would work
    +-- Overloaded            busy now: try again after `retry_after` seconds
    +-- NodeDraining          this node is leaving: ask another one
    +-- RingUnavailable       no plan can serve the model now
    +-- SequenceLost          an engine no longer holds the KV of a sequence: prefill it again

The HTTP API and the gRPC server each translate them by a table.
"""

from __future__ import annotations

from typing import Final

LONGEST: Final = 600


class ExoError(Exception):
    """Root of the errors a request can meet."""


class InvalidRequest(ExoError):
    """The caller sent something that cannot work; `field` is the name of the offending field."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ModelNotFound(InvalidRequest):
    def __init__(self, model: str, available: tuple[str, ...], message: str = "") -> None:
        message = (
            message or f"model {model!r} is not here; available: {', '.join(available) or 'none'}"
        )
        super().__init__(message, field="model")
        self.model = model
        self.available = available


class ContextExceeded(InvalidRequest):
    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(
            f"the prompt has {tokens} tokens, the context window {limit}", field="prompt"
        )
        self.tokens = tokens
        self.limit = limit


class CheckpointError(ExoError):
    """A checkpoint that cannot be read: truncated, of another format, inconsistent."""

    def __init__(self, message: str, *, path: str) -> None:
        # Names come from the file, and a damaged one may have names of many kilobytes.
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"
        super().__init__(f"{path}: {message}")
        self.path = path


class UnsupportedModel(CheckpointError):
    def __init__(self, message: str, *, path: str, supported: tuple[str, ...]) -> None:
        super().__init__(f"{message}; supported: {', '.join(supported)}", path=path)
        self.supported = supported


class Overloaded(ExoError):
    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NodeDraining(ExoError):
    """This node finishes what it has and takes nothing new."""

    def __init__(self, message: str = "this node is draining; ask another one") -> None:
        super().__init__(message)


class RingUnavailable(ExoError):
    """No ring plan can serve the model at present; the message says what is missing."""


class SequenceLost(ExoError):
    """The KV cache of a sequence is not here at the position asked for; prefill its prompt and
    tokens again.
    """

    def __init__(self, sequence_id: str, *, expected: int, held: int | None) -> None:
        super().__init__(f"sequence {sequence_id!r}: position {expected} asked for, {held} held")
        self.sequence_id = sequence_id
        self.expected = expected
        self.held = held
