"""The network of a node without the node: real server and handles, and a handler that only records.

`node_processes` runs the same as a process.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

from exo.networking.discovery import Discovery, PeerFactory
from exo.networking.grpc.grpc_peer_handle import GRPCPeerHandle
from exo.networking.grpc.grpc_server import GRPCServer
from exo.networking.grpc.tls import TlsFiles
from exo.networking.hello import Hello, HelloReply, Membership
from exo.networking.liveness import Timings
from exo.networking.messages import Message
from exo.networking.send_queue import MAX_BYTES
from exo.topology.offer import NodeOffer

_incarnations = itertools.count(1)
MEMBERSHIP = Membership(cluster="test")


class RecordingHandler:
    """Keeps what it is given: offers, messages, losses. `changed` is set with each of them."""

    def __init__(
        self,
        node_id: str,
        *,
        model_id: str = "m",
        model_hash: str = "",
        incarnation: int | None = None,
    ) -> None:
        self.offer = NodeOffer(
            node_id=node_id,
            incarnation=incarnation or next(_incarnations),
            model_id=model_id,
            model_hash=model_hash,
            memory_mib=10,
        )
        self.offers: dict[str, NodeOffer] = {}
        self.messages: list[tuple[str, Message]] = []
        self.lost: list[tuple[str, str]] = []
        self.refuse_with = ""
        self.answer: Callable[[str, Message], Awaitable[None]] | None = None
        self.changed = asyncio.Event()

    def own_offer(self) -> NodeOffer:
        return self.offer

    def on_hello(self, hello: Hello) -> HelloReply:
        return HelloReply(offer=self.offer, reason=self.refuse_with)

    def on_offer(self, offer: NodeOffer) -> None:
        self.offers[offer.node_id] = offer
        self.changed.set()

    async def on_message(self, peer_id: str, message: Message) -> None:
        if self.answer is not None:
            await self.answer(peer_id, message)
        self.messages.append((peer_id, message))
        self.changed.set()

    def on_peer_lost(self, peer_id: str, reason: str) -> None:
        self.lost.append((peer_id, reason))
        self.changed.set()

    async def until(self, condition: Callable[[], object], timeout: float = 10.0) -> None:
        """Wait for something that a callback of this handler brings about."""
        async with asyncio.timeout(timeout):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def make_server(
    handler: RecordingHandler,
    *,
    host: str = "127.0.0.1",
    membership: Membership = MEMBERSHIP,
    tls: TlsFiles | None = None,
    port: int = 0,
    max_peers: int = 128,
) -> GRPCServer:
    node_id = handler.offer.node_id
    return GRPCServer(node_id, host, port, handler, membership, tls=tls, max_peers=max_peers)


def make_handle(
    handler: RecordingHandler,
    port: int,
    *,
    host: str = "127.0.0.1",
    node_id: str | None = None,
    membership: Membership = MEMBERSHIP,
    tls: TlsFiles | None = None,
    timings: Timings | None = None,
    queue_bytes: int = MAX_BYTES,
) -> GRPCPeerHandle:
    return GRPCPeerHandle(
        node_id,
        host,
        port,
        handler=handler,
        membership=membership,
        tls=tls,
        timings=timings,
        queue_bytes=queue_bytes,
    )


def factory(handler: RecordingHandler, membership: Membership = MEMBERSHIP) -> PeerFactory:
    def create(node_id: str | None, address: str, port: int) -> GRPCPeerHandle:
        return make_handle(handler, port, host=address, node_id=node_id, membership=membership)

    return create


async def until_peers(discovery: Discovery, ids: list[str], timeout: float = 10.0) -> None:
    changed = asyncio.Event()
    undo = discovery.on_change(lambda _: changed.set())
    async with asyncio.timeout(timeout):
        while [peer.id() for peer in discovery.peers()] != ids:
            changed.clear()
            await changed.wait()
    undo()
