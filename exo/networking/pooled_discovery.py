"""`PooledDiscovery`: a discovery that only has to say where peers may be. The pool connects to
them. Knows no transport.
"""

from __future__ import annotations

from collections.abc import Callable

from exo.networking.discovery import ChangeListener, Discovery, PeerFactory
from exo.networking.peer_handle import PeerHandle
from exo.networking.peer_pool import PeerPool


class PooledDiscovery(Discovery):
    """Subclasses name candidates by `self._pool.update(...)` while they are initialized."""

    def __init__(self, node_id: str, create_peer_handle: PeerFactory) -> None:
        super().__init__(node_id)
        self._create_peer_handle = create_peer_handle
        self._listeners: list[ChangeListener] = []
        self._pool = self._new_pool()

    def peers(self) -> list[PeerHandle]:
        return self._pool.peers()

    def problems(self) -> dict[str, str]:
        """Why addresses are not connected, by address."""
        return self._pool.problems()

    def on_change(self, callback: ChangeListener) -> Callable[[], None]:
        """Listeners outlive a restart of the discovery."""
        self._listeners.append(callback)

        def undo() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return undo

    async def _discover_peers(self, wait_for_peers: int = 0) -> list[PeerHandle]:
        return await self._pool.wait_for(wait_for_peers)

    def _new_pool(self) -> PeerPool:
        pool = PeerPool(self._node_id, self._create_peer_handle, self._task_manager)
        pool.on_change(self._tell)
        return pool

    def _tell(self, peers: list[PeerHandle]) -> None:
        for listener in list(self._listeners):
            listener(peers)

    async def _do_initialize(self) -> None:
        self._pool = self._new_pool()

    async def _do_cleanup(self) -> None:
        await self._pool.close()


class NoDiscovery(PooledDiscovery):
    """For a node without peers: `--discovery none`."""
