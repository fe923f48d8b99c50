"""The states of a resource and the table of legal moves: data only, imports nothing of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final, TypeAlias


class ResourceState(Enum):
    """Where a resource is in its life."""

    UNINITIALIZED = "uninitialized"
    INITIALIZING = "initializing"
    READY = "ready"
    DEGRADED = "degraded"
    ERROR = "error"
    CLOSING = "closing"
    CLOSED = "closed"

    # Members are singletons, so identity is enough. The default hash, by name, is many times
    # slower, and every public operation looks up a state.
    __hash__ = object.__hash__


_S = ResourceState

TRANSITIONS: Final[Mapping[ResourceState, frozenset[ResourceState]]] = MappingProxyType(
    {
        _S.UNINITIALIZED: frozenset({_S.INITIALIZING, _S.CLOSED}),
        _S.INITIALIZING: frozenset({_S.READY, _S.ERROR, _S.CLOSING}),
        _S.READY: frozenset({_S.DEGRADED, _S.ERROR, _S.CLOSING}),
        _S.DEGRADED: frozenset({_S.READY, _S.ERROR, _S.CLOSING}),
        _S.ERROR: frozenset({_S.INITIALIZING, _S.CLOSING}),
        _S.CLOSING: frozenset({_S.CLOSED}),
        _S.CLOSED: frozenset({_S.INITIALIZING}),
    }
)

USABLE: Final = frozenset({_S.READY, _S.DEGRADED})


@dataclass(frozen=True, slots=True)
class StateChange:
    """One transition. `at`: monotonic seconds. `seconds`: how long the old state had lasted."""

    resource_id: str
    resource_type: str
    old: ResourceState
    new: ResourceState
    reason: str
    at: float
    seconds: float = 0.0


Listener: TypeAlias = Callable[[StateChange], None]
