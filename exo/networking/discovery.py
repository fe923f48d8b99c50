"""`Discovery`: which other nodes there are. It owns the peer handles: it makes, connects, replaces
and closes them.

Others may use a handle until the next `on_change`, and must not keep it longer. Knows no transport.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Protocol

from exo.lifecycle import AsyncResource
from exo.networking.peer_handle import PeerHandle

ChangeListener = Callable[[list[PeerHandle]], None]


class PeerFactory(Protocol):
    """Makes an unconnected handle. `node_id` is None where only the hello will tell it."""

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
        """Another name for `initialize`."""
        await self.initialize()

    async def stop(self) -> None:
        """Another name for `cleanup`."""
        await self.cleanup()

    async def discover_peers(self, wait_for_peers: int = 0) -> list[PeerHandle]:
        """The connected peers, sorted by id. Waits until there are at least `wait_for_peers`,
        however long that takes: bound it with a time-out.
        """
        await self.ensure_ready()
        return await self._discover_peers(wait_for_peers)

    @abstractmethod
    def peers(self) -> list[PeerHandle]:
        """The peers that are connected now, sorted by id; none unless initialized."""

    @abstractmethod
    def on_change(self, callback: ChangeListener) -> Callable[[], None]:
        """Call `callback(peers)` on the event loop after each peer that connects or is lost.
        Returns a function that ends this.
        """

    @abstractmethod
    async def _discover_peers(self, wait_for_peers: int = 0) -> list[PeerHandle]: ...
