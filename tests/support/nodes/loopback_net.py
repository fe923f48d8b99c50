"""A network of queues that joins whole nodes in one process, for `loopback`. No sockets.

Keeps what the real network promises: messages of one sender arrive in order, a refusal comes back
as `Failed`, a lost peer is told to both sides, offers travel with every hello.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from exo.lifecycle import ResourceClosed
from exo.networking.discovery import ChangeListener, Discovery
from exo.networking.errors import PeerLost, WrongEpoch
from exo.networking.messages import Failed, Message
from exo.networking.peer_handle import PeerHandle
from exo.networking.send_queue import MAX_ITEMS
from exo.networking.server import Server
from exo.ring.router import Router
from exo.topology import NodeOffer


class Net:
    """`cut` and `heal` one link; `kill` a node: nothing it sends arrives any more.

    failures: what a receiver, or `on_deliver`, raised; the end of any node raises them, so that the
        test fails of it.
    """

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.routers: dict[str, Router] = {}
        self.discoveries: dict[str, LoopbackDiscovery] = {}
        self.delivered = 0
        self.on_deliver: Callable[[str, str, Message], Awaitable[None]] | None = None
        self._cut: set[frozenset[str]] = set()
        self._handles: dict[tuple[str, str], LoopbackHandle] = {}

    def linked(self, one: str, two: str) -> bool:
        return (
            one in self.discoveries
            and two in self.discoveries
            and frozenset((one, two)) not in self._cut
        )

    async def join(self, discovery: LoopbackDiscovery) -> None:
        self.discoveries[discovery.node_id] = discovery
        await self._connect(discovery.node_id)

    async def _connect(self, node_id: str) -> None:
        others = [other for other in self.discoveries if other != node_id]
        for pair in [pair for other in others for pair in ((node_id, other), (other, node_id))]:
            # Asked for each: while the one before was dialled, the link may have been cut or a node
            # killed.
            if self.linked(*pair) and pair not in self._handles:
                handle = self._handles[pair] = LoopbackHandle(self, *pair)
                # Cut or killed meanwhile: a real pool would try again.
                with suppress(ResourceClosed):
                    await handle.initialize()
        self._tell()

    def cut(self, one: str, two: str) -> None:
        self._cut.add(frozenset((one, two)))
        self._part(one, two, "the link is cut")

    async def heal(self, one: str, two: str) -> None:
        self._cut.discard(frozenset((one, two)))
        await self._connect(one)

    def kill(self, node_id: str) -> None:
        self.discoveries.pop(node_id, None)
        for other in list(self.routers):
            if other != node_id:
                self._part(node_id, other, "it was killed")

    def _part(self, one: str, two: str, reason: str) -> None:
        for pair in ((one, two), (two, one)):
            handle = self._handles.pop(pair, None)
            if handle is not None:
                handle.break_off(reason)
                self.routers[pair[0]].on_peer_lost(pair[1], reason)
        self._tell()

    def _tell(self) -> None:
        for node_id, discovery in self.discoveries.items():
            discovery.tell(self.peers_of(node_id))

    @property
    def cuts(self) -> list[tuple[str, str]]:
        return [(one, two) for one, two in map(sorted, self._cut)]

    def handles(self) -> list[LoopbackHandle]:
        return list(self._handles.values())

    def handle(self, one: str, two: str) -> LoopbackHandle:
        return self._handles[one, two]

    def peers_of(self, node_id: str) -> list[PeerHandle]:
        return [
            handle
            for (one, _), handle in sorted(self._handles.items())
            if one == node_id and handle.is_usable
        ]


class LoopbackHandle(PeerHandle):
    def __init__(self, net: Net, own: str, peer: str) -> None:
        super().__init__(peer, "loopback", 1)
        self._net, self._own, self._peer = net, own, peer
        self._queue: asyncio.Queue[Message] = asyncio.Queue(MAX_ITEMS)
        self._lost: str | None = None
        self.slow = False

    async def _do_initialize(self) -> None:
        name = f"carry {self._own} to {self._peer}"
        self._task_manager.start_task(name, self._carry, on_error=self._net.failures.append)
        await self._hello()

    def break_off(self, reason: str) -> None:
        self._lost = reason
        self._queue = asyncio.Queue()
        self._task_manager.start_task("close", self.cleanup)

    def offer(self) -> NodeOffer:
        return self._net.routers[self._peer].own_offer()

    def is_connected(self) -> bool:
        return self._lost is None

    def lost(self) -> PeerLost | None:
        return None if self._lost is None else PeerLost(self._peer, self._lost)

    def is_slow(self) -> bool:
        return self.slow

    def latency(self) -> float | None:
        return 0.0

    def on_lost(self, callback: Callable[[str, str], None]) -> Callable[[], None]:
        return lambda: None

    async def _send(self, message: Message) -> None:
        if self._lost is not None:
            raise PeerLost(self._peer, self._lost)
        await self._queue.put(message)

    def _send_now(self, message: Message) -> bool:
        if self._queue.full():
            return False
        self._queue.put_nowait(message)
        return True

    def queued(self) -> int:
        return self._queue.qsize()

    async def _hello(self) -> NodeOffer:
        if self._lost is not None:
            raise PeerLost(self._peer, self._lost)
        self._net.routers[self._peer].on_offer(self._net.routers[self._own].own_offer())
        self._net.routers[self._own].on_offer(self.offer())
        return self.offer()

    async def _carry(self) -> None:
        while self._lost is None:
            message = await self._queue.get()
            if self._lost is not None:
                # A stream that broke brings nothing any more, not even what is there already.
                return
            if self._net.on_deliver is not None:
                await self._net.on_deliver(self._own, self._peer, message)
            self._net.delivered += 1
            try:
                await self._net.routers[self._peer].on_message(self._own, message)
            except WrongEpoch as error:
                await self._net.routers[self._own].on_message(
                    self._peer, refusal(self._peer, message, error)
                )


def refusal(node: str, message: Message, error: Exception) -> Failed:
    return Failed(
        sequence_id=message.sequence_id,
        epoch=message.epoch,
        node=node,
        reason=str(error),
        retryable=True,
    )


class LoopbackServer(Server):
    def __init__(self, node_id: str) -> None:
        super().__init__(node_id, "loopback", 1)

    async def _do_initialize(self) -> None:
        pass

    async def _do_cleanup(self) -> None:
        pass


class LoopbackDiscovery(Discovery):
    def __init__(self, node_id: str, net: Net) -> None:
        super().__init__(node_id)
        self.node_id = node_id
        self._net = net
        self._listeners: list[ChangeListener] = []

    async def _do_initialize(self) -> None:
        await self._net.join(self)

    async def _do_cleanup(self) -> None:
        if self._is_current():
            self._net.kill(self.node_id)
        if self._net.failures:
            raise BaseExceptionGroup("messages that could not be delivered", self._net.failures)

    def _is_current(self) -> bool:
        """Not so once the node was killed, even if another of its name has come."""
        return self._net.discoveries.get(self.node_id) is self

    def peers(self) -> list[PeerHandle]:
        return self._net.peers_of(self.node_id) if self._is_current() else []

    def on_change(self, callback: ChangeListener) -> Callable[[], None]:
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    async def _discover_peers(self, wait_for_peers: int = 0) -> list[PeerHandle]:
        while len(self.peers()) < wait_for_peers:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return self.peers()

    def tell(self, peers: list[PeerHandle]) -> None:
        for listener in list(self._listeners):
            listener(peers)
