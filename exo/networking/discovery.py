"""`Discovery`: who else is there. It owns the peer handles: makes, connects, replaces and closes
them.

Others use the handles and must not keep one beyond the next `on_change`. Knows no transport.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Protocol

from exo.lifecycle import AsyncResource
from exo.networking.peer_handle import PeerHandle

ChangeListener = Callable[[list[PeerHandle]], None]


class PeerFactory(Protocol):
    """Makes an unconnected handle; `node_id` None where only the hello will tell."""

    def __call__(self, node_id: str | None, address: str, port: int) -> PeerHandle: ...


class Discovery(AsyncResource, ABC):
    RESOURCE_TYPE: ClassVar[str] = "discovery"

    def __init__(self, node_id: str) -> None:
        super().__init__(
            resource_id=f"discovery-{node_id}",
            resource_type=self.RESOURCE_TYPE,
            display_name=f"Discovery for node {node_id}",
        )
        self._node_id = node_id

    async def start(self) -> None:
        """The seed's name for `initialize`."""
        await self.initialize()

    async def stop(self) -> None:
        """The seed's name for `cleanup`."""
        await self.cleanup()

    async def discover_peers(self, wait_for_peers: int = 0) -> list[PeerHandle]:
        """The connected peers, by id; first waits until there are `wait_for_peers` (bound it with a
        time-out).
        """
        await self.ensure_ready()
        return await self._discover_peers(wait_for_peers)

    @abstractmethod
    def peers(self) -> list[PeerHandle]:
        """The connected peers as of now, by id; [] unless initialized."""

    @abstractmethod
    def on_change(self, callback: ChangeListener) -> Callable[[], None]:
        """`callback(peers)` after each peer connected or lost, on the event loop; returns undo."""

    @abstractmethod
    async def _discover_peers(self, wait_for_peers: int = 0) -> list[PeerHandle]: ...
