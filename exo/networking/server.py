"""`Server`: where peers reach this node. `RingHandler`: what handles what they say. Knows no
transport.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

from exo.lifecycle import AsyncResource
from exo.networking.hello import Hello, HelloReply
from exo.networking.messages import Message
from exo.topology.offer import NodeOffer


class RingHandler(Protocol):
    """The node, as its network parts see it. The plain methods are called on the event loop and
    must not block.
    """

    def own_offer(self) -> NodeOffer:
        """What this node offers now. It goes into every hello and heartbeat."""
        ...

    def on_hello(self, hello: Hello) -> HelloReply:
        """A peer wants to connect. Its cluster, protocol, model, secret and identity are right; a
        reason in the reply refuses it all the same.

        Called for each stream that the peer opens, so it must have no other effect.
        """
        ...

    def on_offer(self, offer: NodeOffer) -> None:
        """A peer's newest offer, from its hello or a heartbeat (either direction)."""
        ...

    async def on_message(self, peer_id: str, message: Message) -> None:
        """One message of `peer_id`, in the order sent. While this waits, the peer's stream waits
        (back-pressure).

        An error refuses this message, and the stream goes on: the sender's own handler is given a
        `Failed` for that sequence. For `WrongEpoch` the code is `FAILED_PRECONDITION` and the
        failure is retryable; for an error that is not in `grpc/status.py` the code is `INTERNAL`.
        """
        ...

    def on_peer_lost(self, peer_id: str, reason: str) -> None:
        """A stream of this peer broke, in either direction. One loss may be reported twice."""
        ...


class Server(AsyncResource, ABC):
    """Accepts peers. port: 0 asks the system for one. After `initialize` the property is the real
    one.
    """

    RESOURCE_TYPE: ClassVar[str] = "server"

    def __init__(self, node_id: str, host: str, port: int) -> None:
        super().__init__(
            resource_id=f"{self.RESOURCE_TYPE.replace('_', '-')}-{node_id}",  # server-<id>
            resource_type=self.RESOURCE_TYPE,
            display_name=f"Server for node {node_id}",
        )
        if not 0 <= port <= 65535:
            raise ValueError(f"port: {port} is no port (0 to 65535)")
        self._node_id = node_id
        self._host = host
        self._port = port
        self._real_port = port

    @property
    def host(self) -> str:
        return self._host

    @property
    def port(self) -> int:
        return self._real_port

    async def start(self) -> None:
        """Another name for `initialize`."""
        await self.initialize()

    async def stop(self) -> None:
        """Another name for `cleanup`."""
        await self.cleanup()

    @abstractmethod
    async def _do_initialize(self) -> None: ...

    @abstractmethod
    async def _do_cleanup(self) -> None: ...
