"""The errors of `exo` as gRPC status codes, in one table."""

from __future__ import annotations

import grpc

from exo.inference.errors import (
    InvalidRequest,
    NodeDraining,
    Overloaded,
    RingUnavailable,
    SequenceLost,
)
from exo.networking.errors import BadMessage, PeerRefused, WrongEpoch

# First match wins.
CODES: tuple[tuple[type[BaseException], grpc.StatusCode], ...] = (
    (BadMessage, grpc.StatusCode.INVALID_ARGUMENT),
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (WrongEpoch, grpc.StatusCode.FAILED_PRECONDITION),
    (SequenceLost, grpc.StatusCode.FAILED_PRECONDITION),
    (PeerRefused, grpc.StatusCode.PERMISSION_DENIED),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (NodeDraining, grpc.StatusCode.UNAVAILABLE),
    (RingUnavailable, grpc.StatusCode.UNAVAILABLE),
    (TimeoutError, grpc.StatusCode.DEADLINE_EXCEEDED),
)
# The same message may be right later, or on another plan.
_RETRYABLE = frozenset(
    {
        grpc.StatusCode.FAILED_PRECONDITION.name,
        grpc.StatusCode.RESOURCE_EXHAUSTED.name,
        grpc.StatusCode.UNAVAILABLE.name,
        grpc.StatusCode.DEADLINE_EXCEEDED.name,
    }
)


def code_of(error: BaseException) -> grpc.StatusCode:
    """INTERNAL for everything not listed."""
    return next((code for kind, code in CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def is_retryable(code: str) -> bool:
    return code in _RETRYABLE
