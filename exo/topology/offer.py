"""`NodeOffer`: what one node tells the others about itself, in its hello and in every heartbeat.
Pure.

Knows no sockets and no clock: how offers travel is `exo.networking`'s, what follows from them
`plan_ring`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MAX_ID_LENGTH = 128
MAX_PEERS = 256


class NodeState(StrEnum):
    JOINING = "joining"  # loading weights: may be planned in, serves nothing yet
    SERVING = "serving"
    LEAVING = "leaving"  # draining: finishes what it has, is left out of new plans


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOffer:
    """One node's share of the membership view.

    memory_mib: usable memory, already the least of cgroup limit, host RAM and `--memory`; 0 offers
        nothing.
    incarnation: differs for each start of the process, so that a restart is never taken for the
        same node.
    epoch: of the ring plan this node has adopted, "" for none.
    peers: ids of the nodes it is connected to; slow: those among them that answer late.
    stuck: why its own forward passes make no progress, "" while they do: it is planned without, on
        its own word.
    pass_ms: what a forward pass takes there, roughly, 0 where it has not told; queued: sequences
        wait there for memory.
    pinned: first and last layer that the operator fixed for this node.
    Raises `ValueError` naming the field.
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
        for name in ("incarnation", "memory_mib", "cores", "pass_ms"):
            if not 0 <= getattr(self, name) < 2**63:
                raise ValueError(f"{name}: {getattr(self, name)} must be 0 or more and below 2**63")
        for name in ("grpc_port", "api_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ValueError(f"{name}: {getattr(self, name)} is no port (0 to 65535)")
        for name in ("address", "model_id", "model_hash", "epoch", "engine", "stuck"):
            if len(getattr(self, name)) > 4 * MAX_ID_LENGTH:
                raise ValueError(
                    f"{name}: {len(getattr(self, name))} characters, at most {4 * MAX_ID_LENGTH}"
                )
        for name in ("peers", "slow"):
            self._check_ids(name, getattr(self, name))
        if self.pinned is not None and not 0 <= self.pinned[0] <= self.pinned[1] < 2**31:
            raise ValueError(f"pinned: {self.pinned[0]}-{self.pinned[1]} is no range of layers")

    @staticmethod
    def _check_ids(name: str, ids: tuple[str, ...]) -> None:
        if len(ids) > MAX_PEERS:
            raise ValueError(f"{name}: {len(ids)} ids, at most {MAX_PEERS}")
        if any(not 1 <= len(each) <= MAX_ID_LENGTH for each in ids):
            raise ValueError(f"{name}: an id must have 1 to {MAX_ID_LENGTH} characters")
