"""`NoDiscovery`: a node that is to stay alone."""

from __future__ import annotations

from collections.abc import Callable

from exo.networking.discovery import ChangeListener, Discovery
from exo.networking.peer_handle import PeerHandle


class NoDiscovery(Discovery):
    def peers(self) -> list[PeerHandle]:
        return []

    def on_change(self, callback: ChangeListener) -> Callable[[], None]:
        return lambda: None

    async def _discover_peers(self, wait_for_peers: int = 0) -> list[PeerHandle]:
        if wait_for_peers > 0:
            raise ValueError(f"wait_for_peers: {wait_for_peers}, but discovery is off")
        return []
