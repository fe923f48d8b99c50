"""`Sightings`: which nodes were heard, where and when. Bounded, so that a flood of datagrams costs
no memory. Pure.
"""

from __future__ import annotations

from exo.networking.peer_pool import Candidate
from exo.networking.udp.announcement import Announcement

MAX_SIGHTINGS = 256
MAX_PER_ADDRESS = 32


class Sightings:
    """expiry: seconds after which an address that is not heard any more is forgotten. The time is
    passed in.
    """

    def __init__(self, expiry: float) -> None:
        self._expiry = expiry
        self._heard: dict[Candidate, float] = {}

    def see(self, announcement: Announcement, address: str, now: float) -> bool:
        """Returns whether this is news. A full table takes nothing new until something has
        expired.
        """
        candidate = Candidate(announcement.node_id, address, announcement.grpc_port)
        if candidate in self._heard:
            self._heard[candidate] = now
            return False
        if len(self._heard) >= MAX_SIGHTINGS:
            return False
        if sum(each.address == address for each in self._heard) >= MAX_PER_ADDRESS:
            return False
        self._heard[candidate] = now
        return True

    def expire(self, now: float) -> bool:
        """Returns whether something was forgotten."""
        old = [each for each, at in self._heard.items() if now - at > self._expiry]
        for each in old:
            del self._heard[each]
        return bool(old)

    def candidates(self) -> list[Candidate]:
        return list(self._heard)
