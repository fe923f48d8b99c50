"""`NodeOffer`: what one node tells the others about itself, in its hello and in every heartbeat.
Pure.

Knows no sockets and no clock: how offers travel is `exo.networking`'s concern, and what follows
from them is `ring_plan`'s. A new field is added here and to the proto file; its type says how it
is checked and how it travels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, get_type_hints

MAX_ID_LENGTH = 128
MAX_TEXT_LENGTH = 4 * MAX_ID_LENGTH
MAX_PEERS = 256


class NodeState(StrEnum):
    JOINING = "joining"  # loading weights: may be planned in, serves nothing yet
    SERVING = "serving"
    LEAVING = "leaving"  # draining: finishes what it has, is left out of new plans


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOffer:
    """One node's share of the membership view. Raises `ValueError` naming the field.

    incarnation: grows with each start of the process, so that a restarted process is never taken
        for the one before.
    memory_mib: usable memory: the least of the cgroup's limit, the machine's RAM and `--memory`. A
        node with 0 offers none.
    epoch: of the ring plan that this node has adopted; "" for none.
    peers: ids of the nodes that it is connected to; slow: those among them that answer late.
    stuck: why its own forward passes make no progress; "" while they do. A node that says so is
        left out of plans.
    pass_ms: roughly how long a forward pass takes there; 0 while that is not known.
    queued: whether sequences wait there for memory.
    pinned: first and last layer that were fixed for this node (`--layers`).
    """

    node_id: str
    incarnation: int
    address: str = ""
    grpc_port: int = 0
    api_port: int = 0
    memory_mib: int = 0
    cores: int = 1
    state: NodeState = NodeState.JOINING
    model_id: str = ""
    model_hash: str = ""
    epoch: str = ""
    engine: str = ""
    peers: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    stuck: str = ""
    pass_ms: int = 0
    queued: bool = False
    pinned: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.node_id) <= MAX_ID_LENGTH:
            raise ValueError(
                f"node_id: {len(self.node_id)} characters, must be 1 to {MAX_ID_LENGTH}"
            )
        for name, check in _CHECKS.items():
            check(name, getattr(self, name))


def _check_number(name: str, value: int) -> None:
    if not 0 <= value < 2**63:
        raise ValueError(f"{name}: {value} must be 0 or more and below 2**63")


def _check_port(name: str, value: int) -> None:
    if not 0 <= value <= 65535:
        raise ValueError(f"{name}: {value} is no port (0 to 65535)")


def _check_text(name: str, value: str) -> None:
    if len(value) > MAX_TEXT_LENGTH:
        raise ValueError(f"{name}: {len(value)} characters, at most {MAX_TEXT_LENGTH}")


def _check_ids(name: str, ids: tuple[str, ...]) -> None:
    if len(ids) > MAX_PEERS:
        raise ValueError(f"{name}: {len(ids)} ids, at most {MAX_PEERS}")
    if any(not 1 <= len(each) <= MAX_ID_LENGTH for each in ids):
        raise ValueError(f"{name}: an id must have 1 to {MAX_ID_LENGTH} characters")


def _check_layers(name: str, layers: tuple[int, int] | None) -> None:
    if layers is not None and not 0 <= layers[0] <= layers[1] < 2**31:
        raise ValueError(f"{name}: {layers[0]}-{layers[1]} is no range of layers")


def _check_nothing(name: str, value: object) -> None:
    """The type says it all."""


_CHECKS_BY_TYPE: Final[dict[object, Callable[[str, Any], None]]] = {
    int: _check_number,
    str: _check_text,
    bool: _check_nothing,
    NodeState: _check_nothing,
    tuple[str, ...]: _check_ids,
    tuple[int, int] | None: _check_layers,
}


def _check_of(name: str, kind: object) -> Callable[[str, Any], None]:
    return _check_port if name.endswith("_port") else _CHECKS_BY_TYPE[kind]


_CHECKS: Final = {name: _check_of(name, kind) for name, kind in get_type_hints(NodeOffer).items()}
