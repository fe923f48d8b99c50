"""`GRPCPeerHandle`: the dialling side of a connection. It connects, says hello, sends heartbeats
and messages, and notices when the peer is lost.

One connection has two streams: Control (heartbeats) and Data (ring messages). So a peer that is
behind with messages still answers heartbeats. The first stream to break ends the connection: from
then on the handle raises `PeerLost`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc

from exo.lifecycle import ResourceDegraded, ResourceTimeout
from exo.networking.errors import BadMessage, PeerLost, PeerStuck
from exo.networking.grpc import tls as tls_files
from exo.networking.grpc.connection import Connection
from exo.networking.grpc.handshake import read_frame
from exo.networking.grpc.status import is_retryable
from exo.networking.grpc.wire import control_codec as wire
from exo.networking.grpc.wire.codec import MAX_BUNDLE, Parts, bundle, decode, encode_parts
from exo.networking.hello import Membership
from exo.networking.liveness import Liveness, Timings
from exo.networking.messages import Failed, Message
from exo.networking.peer_handle import PeerHandle
from exo.networking.send_queue import MAX_BYTES, SendQueue
from exo.networking.server import RingHandler
from exo.topology.offer import NodeOffer

log = logging.getLogger(__name__)

# Small messages that wait together travel together. A large tensor goes alone, as a bundle would
# copy it once more.
BUNDLE_BYTES = 256 * 1024


class GRPCPeerHandle(PeerHandle):
    """queue_bytes: how much may wait for a peer that is behind."""

    def __init__(
        self,
        node_id: str | None,
        address: str,
        port: int,
        *,
        handler: RingHandler,
        membership: Membership,
        tls: tls_files.TlsFiles | None = None,
        timings: Timings | None = None,
        queue_bytes: int = MAX_BYTES,
    ) -> None:
        super().__init__(node_id, address, port)
        self._queue_bytes = queue_bytes
        self._expected_id = node_id
        self._handler = handler
        self._membership = membership
        self._tls = tls
        self._timings = timings or Timings()
        self._liveness = Liveness(self._timings)
        self._connection: Connection | None = None
        self._offer: NodeOffer | None = None
        self._lost: PeerLost | None = None
        self._queue: SendQueue[Parts] | None = None
        self._unsent: list[Parts] = []
        self._listeners: list[Callable[[str, str], None]] = []
        self._beats = 0
        self._beat_now = asyncio.Event()
        self._sent_at: dict[int, float] = {}
        self._answers: dict[int, asyncio.Future[NodeOffer]] = {}

    def offer(self) -> NodeOffer | None:
        return self._offer

    def is_connected(self) -> bool:
        return self._queue is not None and self._lost is None

    def is_slow(self) -> bool:
        return self.is_connected() and self._liveness.is_slow()

    def latency(self) -> float | None:
        return self._liveness.latency

    def lost(self) -> PeerLost | None:
        return self._lost

    def queued(self) -> int:
        return 0 if self._queue is None else len(self._queue)

    def take_unsent(self) -> list[Message]:
        unsent, self._unsent = self._unsent, []
        if self._queue is not None:
            unsent += self._queue.clear()
        return [decode(b"".join(parts)) for parts in unsent]

    def on_lost(self, callback: Callable[[str, str], None]) -> Callable[[], None]:
        self._listeners.append(callback)

        def undo() -> None:
            with suppress(ValueError):
                self._listeners.remove(callback)

        return undo

    async def _do_initialize(self) -> None:
        self._lost = None
        self._liveness = Liveness(self._timings)
        self._connection = Connection(
            self.addr(),
            self._membership,
            self._handler.own_offer,
            self._tls,
            self._timings.connect_timeout,
        )
        try:
            offer = await self._connection.open(self._expected_id, self._refuse_when)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise PeerLost(self.id(), _reason(error)) from error
        except TimeoutError as error:
            kind = PeerStuck if await self._port_answers(self._timings.probe_timeout) else PeerLost
            raise kind(self.id(), f"no answer from {self.addr()} to the hello") from error
        self._peer_id = offer.node_id
        self._queue, self._unsent = SendQueue(_size, max_bytes=self._queue_bytes), []
        self._heard_offer(offer)
        for name, factory in (
            ("beat", self._beat),
            ("hear", self._hear),
            ("write", self._write),
            ("refusals", self._read_refusals),
            ("watch", self._watch),
        ):
            self._task_manager.start_task(
                f"{name} {self.id()}", self._until_lost(factory, self._connection)
            )

    async def _do_cleanup(self) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            self._unsent += queue.close(PeerLost(self.id(), "this node closed the connection"))
        for answer in self._answers.values():
            answer.cancel()
        self._answers.clear()
        self._sent_at.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _do_health_check(self) -> bool:
        if self._liveness.is_slow() and self.is_connected():
            raise ResourceDegraded(
                f"heartbeats are late: silent for {self._liveness.silence:.1f} s"
            )
        return self.is_connected()

    async def _send(self, message: Message) -> None:
        await self._open_queue().put(encode_parts(message))

    def _send_now(self, message: Message) -> bool:
        return self._open_queue().put_now(encode_parts(message))

    def _open_queue(self) -> SendQueue[Parts]:
        if self._queue is None:
            raise self._lost or PeerLost(self.id(), "the connection is closed")
        return self._queue

    async def _hello(self) -> NodeOffer:
        if self._lost is not None:
            raise self._lost
        answer: asyncio.Future[NodeOffer] = asyncio.get_running_loop().create_future()
        self._answers[self._beats + 1] = answer
        self._beat_now.set()
        try:
            async with asyncio.timeout(self._timings.hello_timeout):
                return await answer
        except TimeoutError as error:
            problem = f"peer {self.id()!r} did not answer within {self._timings.hello_timeout} s"
            raise ResourceTimeout(
                problem, resource_id=self.resource_id, state=self.state
            ) from error

    def _until_lost(
        self, work: Callable[[Connection], Awaitable[None]], connection: Connection
    ) -> Callable[[], Any]:
        """Run `work`. However it ends, the peer is lost, unless this handle was closed."""

        async def run() -> None:
            cancelled = False
            try:
                await work(connection)
                self._lose("it ended its stream")
            except asyncio.InvalidStateError:
                # A write to a stream that has ended: the status says why.
                self._lose(await connection.status())
            except (grpc.aio.AioRpcError, BadMessage) as error:
                self._lose(_reason(error))
            except PeerLost:
                pass  # the queue was closed: another task has noticed
            except asyncio.CancelledError:
                cancelled = True
            if cancelled:
                # A new one, because the traceback of the old one keeps the stream, and with it the
                # socket, alive.
                raise asyncio.CancelledError

        return run

    def _lose(self, reason: str, kind: type[PeerLost] = PeerLost) -> None:
        if self._lost is not None or self._queue is None:
            return
        self._lost = kind(self.id(), reason, state=self.state)
        self._unsent += self._queue.close(self._lost)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self._lost)
        self._answers.clear()
        if self._connection is not None:
            self._connection.cancel()
        log.warning("peer %s lost: %s", self.id(), reason)
        self._handler.on_peer_lost(self.id(), reason)
        for listener in list(self._listeners):
            listener(self.id(), reason)

    async def _beat(self, connection: Connection) -> None:
        while True:
            self._beat_now.clear()
            self._beats += 1
            number = self._beats
            self._sent_at[number] = time.monotonic()
            if len(self._sent_at) > 256:
                del self._sent_at[min(self._sent_at)]
            await connection.control.write(wire.heartbeat_frame(number, self._handler.own_offer()))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timings.heartbeat):
                    await self._beat_now.wait()

    async def _hear(self, connection: Connection) -> None:
        while (data := await read_frame(connection.control)) is not None:
            number, offer = wire.read_heartbeat(data)
            if offer.node_id != self._peer_id:
                raise BadMessage(
                    "offer.node_id", f"{offer.node_id!r} in an answer of {self._peer_id!r}"
                )
            sent = self._sent_at.pop(number, None)
            if sent is not None:
                self._liveness.heard(time.monotonic() - sent)
            self._heard_offer(offer)
            answer = self._answers.pop(number, None)
            if answer is not None and not answer.done():
                answer.set_result(offer)

    def _heard_offer(self, offer: NodeOffer) -> None:
        self._offer = offer
        self._handler.on_offer(offer)

    async def _write(self, connection: Connection) -> None:
        queue = self._open_queue()
        while True:
            together = await queue.get_together(max_items=MAX_BUNDLE, max_bytes=BUNDLE_BYTES)
            await connection.data.write(bundle([b"".join(parts) for parts in together]))

    async def _read_refusals(self, connection: Connection) -> None:
        while (data := await read_frame(connection.data)) is not None:
            refused = wire.read_refused(data)
            failed = Failed(
                sequence_id=refused.sequence_id,
                epoch=refused.epoch,
                node=self.id(),
                reason=f"{refused.code}: {refused.reason}",
                retryable=is_retryable(refused.code),
            )
            try:
                await self._handler.on_message(self.id(), failed)
            except Exception:
                of = {"sequence_id": refused.sequence_id}
                log.exception("a refusal by %s could not be handled", self.id(), extra=of)

    async def _watch(self, _: Connection) -> None:
        while True:
            await asyncio.sleep(self._timings.tick)
            self._liveness.tick(time.monotonic())
            if self._liveness.is_stuck():
                self._lose(
                    f"silent for {self._liveness.silence:.0f} s, though its port answers", PeerStuck
                )
                return
            if self._liveness.is_silent() and not await self._port_answers(
                self._timings.probe_timeout
            ):
                self._lose(
                    f"no heartbeat for {self._liveness.silence:.1f} s and its port does not answer"
                )
                return
            if self._liveness.is_silent():
                # It is there and only slow: there is no hurry to try again.
                await asyncio.sleep(self._timings.heartbeat)

    async def answers(self) -> bool:
        return await self._port_answers(self._timings.connect_timeout)

    async def _port_answers(self, timeout: float) -> bool:
        """Tried again where this node's own loop stood still meanwhile: that says nothing about the
        peer.
        """
        begun = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                _, writer = await asyncio.open_connection(self._address, self._port)
        except TimeoutError:
            stalled = time.monotonic() - begun > timeout + 2 * self._timings.tick
            return stalled and await self._port_answers(timeout)
        except OSError:
            return False
        writer.close()
        return True


def _size(parts: Parts) -> int:
    return sum(map(len, parts))


def _reason(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
