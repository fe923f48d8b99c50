"""`PeerHandle`: this node's connection to one peer, from hello to loss. Knows no transport.

`initialize` connects and says hello. A handle whose peer is lost stays lost: `send` raises
`PeerLost`. The discovery that made the handle closes it, and makes another one when the peer is
back.

A handle owns the queue of what is to be sent to its peer. There is no other queue on the way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from exo.lifecycle import AsyncResource, ResourceUnavailable
from exo.networking.errors import PeerLost
from exo.networking.messages import Message
from exo.topology.offer import NodeOffer


class PeerHandle(AsyncResource, ABC):
    """node_id: None where only the peer's hello will tell it (DNS knows nothing but addresses)."""

    RESOURCE_TYPE: ClassVar[str] = "peer_handle"

    def __init__(self, node_id: str | None, address: str, port: int) -> None:
        super().__init__(
            resource_id=f"peer-{node_id or f'{address}:{port}'}",
            resource_type=self.RESOURCE_TYPE,
            display_name=f"Peer {node_id or 'unnamed'} at {address}:{port}",
        )
        self._peer_id = node_id
        self._address = address
        self._port = port
        self._refuse_when: Callable[[str], str] = _never

    def id(self) -> str:
        """The peer's node id; `address:port` while that is not known."""
        return self._peer_id or self.addr()

    def addr(self) -> str:
        host = f"[{self._address}]" if ":" in self._address else self._address
        return f"{host}:{self._port}"

    def description(self) -> str:
        return f"{self.id()} at {self.addr()} over {type(self).__name__}"

    @abstractmethod
    def offer(self) -> NodeOffer | None:
        """The peer's newest offer; None before its hello."""

    def device_capabilities(self) -> NodeOffer | None:
        """Another name for `offer`: memory and cores are in it."""
        return self.offer()

    @abstractmethod
    def is_connected(self) -> bool:
        """Whether the stream is up and the hello was accepted. A slow peer is connected."""

    async def answers(self) -> bool:
        """Whether anything takes connections at its address. Needs no `initialize` and changes no
        state.
        """
        return True

    @abstractmethod
    def lost(self) -> PeerLost | None:
        """Why the peer is lost; None while it is not (and before it ever was connected)."""

    @abstractmethod
    def is_slow(self) -> bool:
        """Connected, but its heartbeats are late."""

    @abstractmethod
    def latency(self) -> float | None:
        """Seconds from the last answered heartbeat to its answer."""

    def refuse_when(self, check: Callable[[str], str]) -> None:
        """Call `check(node_id)` in the middle of the hello, as soon as the peer's id is known. A
        reason that it returns ends the hello with `PeerRefused`.
        """
        self._refuse_when = check

    @abstractmethod
    def on_lost(self, callback: Callable[[str, str], None]) -> Callable[[], None]:
        """Call `callback(peer_id, reason)` once when the peer is lost, but not when this handle is
        closed. Returns a function that ends this.
        """

    async def send(self, message: Message) -> None:
        """Queue one message; they arrive in order. Waits while the peer is behind (back-pressure).

        Raises `PeerLost` once the peer is lost, `BadMessage` for a message that no peer would take,
        and `ResourceClosed` after `cleanup`. Cancelling a waiting send sends nothing.
        """
        self._check_not_lost()
        await self.ensure_ready()
        await self._send(message)

    def send_now(self, message: Message) -> bool:
        """As `send`, but does not wait: False where the queue is full, and the message is not
        queued then. Raises `ResourceUnavailable` where the handle is not connected.
        """
        self._check_not_lost()
        if not self.is_usable:
            raise ResourceUnavailable(
                f"peer {self.id()!r} is not connected",
                resource_id=self.resource_id,
                state=self.state,
            )
        return self._send_now(message)

    def queued(self) -> int:
        """Messages that were taken and have yet to be given to the transport."""
        return 0

    def take_unsent(self) -> list[Message]:
        """Take back the messages that are still queued, in order. They will not be sent.

        Works in every state. After a loss these are the messages that were queued at that moment.
        What was on its way to the peer by then is in no list: it may have arrived.
        """
        return []

    async def hello(self) -> NodeOffer:
        """Send a heartbeat now; the peer's offer in its answer. Raises `PeerLost`, and
        `ResourceTimeout` after 5 s without an answer.
        """
        self._check_not_lost()
        await self.ensure_ready()
        return await self._hello()

    async def health_check(self) -> bool:
        """Another name for `check_health`."""
        return await self.check_health()

    async def connect(self) -> None:
        """Another name for `initialize`."""
        await self.initialize()

    async def disconnect(self) -> None:
        """Another name for `cleanup`."""
        await self.cleanup()

    @abstractmethod
    async def _send(self, message: Message) -> None: ...

    @abstractmethod
    def _send_now(self, message: Message) -> bool: ...

    @abstractmethod
    async def _hello(self) -> NodeOffer: ...

    def _check_not_lost(self) -> None:
        if (lost := self.lost()) is not None:
            raise lost.with_traceback(None)


def _never(_node_id: str) -> str:
    return ""
