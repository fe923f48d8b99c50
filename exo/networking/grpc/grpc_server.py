"""`GRPCServer`: accepts peers' streams and passes their messages to the `RingHandler`. It decides
nothing about the ring.

A peer has one Control and one Data stream; a newer stream of the same kind replaces the older one.
When one ends, so does the other, and the handler is called once. A stranger gets no further than
the hello, and hellos are bounded in number, time and size.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc

from exo.networking.errors import BadMessage, PeerLost
from exo.networking.grpc import tls as tls_files
from exo.networking.grpc.handshake import answer_hello, read_frame
from exo.networking.grpc.listening import listen
from exo.networking.grpc.options import SERVER_OPTIONS, SERVICE
from exo.networking.grpc.sessions import Sessions
from exo.networking.grpc.status import code_of
from exo.networking.grpc.wire import control_codec as wire
from exo.networking.grpc.wire.codec import decode_all
from exo.networking.hello import Hello, HelloReply, Membership
from exo.networking.messages import Message
from exo.networking.server import RingHandler, Server
from exo.topology.offer import NodeOffer

log = logging.getLogger(__name__)

HELLO_TIMEOUT = 5.0
MAX_HELLOS = 64
MAX_HELLOS_PER_HOST = 16


class GRPCServer(Server):
    """tls: serve mutual TLS only. max_peers: more are refused.

    `sessions` are the peers that have a stream open to this node.
    """

    def __init__(
        self,
        node_id: str,
        host: str,
        port: int,
        handler: RingHandler,
        membership: Membership,
        *,
        tls: tls_files.TlsFiles | None = None,
        max_peers: int = 128,
    ) -> None:
        super().__init__(node_id, host, port)
        self._handler = handler
        self._membership = membership
        self._tls = tls
        self._max_peers = max_peers
        self._server: Any = None
        self.sessions = Sessions(handler.on_peer_lost)
        self._hellos: Counter[str] = Counter()
        self._warned_at = -1.0
        self._unwarned = 0

    async def _do_initialize(self) -> None:
        self.sessions = Sessions(self._handler.on_peer_lost)
        server = grpc.aio.server(
            options=SERVER_OPTIONS, maximum_concurrent_rpcs=2 * self._max_peers + MAX_HELLOS
        )
        self._server = server
        methods = {
            "Control": grpc.stream_stream_rpc_method_handler(self._control),
            "Data": grpc.stream_stream_rpc_method_handler(self._data),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        credentials = None if self._tls is None else tls_files.server_credentials(self._tls)
        port = listen(server, self._host, self._port, credentials, setting="grpc_port")
        await server.start()
        self._real_port = port

    async def _do_cleanup(self) -> None:
        self.sessions.close()
        server, self._server = self._server, None
        if server is not None:
            await server.stop(0.2)
        self._real_port = self._port

    async def _do_health_check(self) -> bool:
        """Whether the port accepts a connection."""
        if self._server is None:
            return False
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        try:
            _, writer = await asyncio.open_connection(host, self._real_port)
        except OSError:
            return False
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return True

    async def _control(self, _: Any, context: Any) -> None:
        await self._serve("control", context, self._heartbeats)

    async def _data(self, _: Any, context: Any) -> None:
        await self._serve("data", context, self._messages)

    async def _serve(
        self, kind: str, context: Any, loop: Callable[[str, Any], Awaitable[None]]
    ) -> None:
        """One stream's life: hello, then its loop until either side ends it."""
        try:
            offer = await self._accept(context)
        except (BadMessage, PeerLost, TimeoutError) as error:
            self._warn(f"hello from {context.peer()} refused: {str(error) or 'too slow'}")
            await context.abort(code_of(error), str(error) or "the hello took too long")
            return
        peer = offer.node_id
        with self.sessions.stream(peer, offer.incarnation, kind) as ended:
            self._handler.on_offer(offer)
            try:
                await loop(peer, context)
            except BadMessage as error:
                ended.reason = f"it sent a bad message: {error}"
                self._warn(f"stream of {peer} ended: bad message: {error}")
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except asyncio.CancelledError:
                if not ended.by_us:
                    raise
                await context.abort(grpc.StatusCode.ABORTED, ended.reason)

    async def _accept(self, context: Any) -> NodeOffer:
        host = _host_of(context.peer())
        if self._hellos.total() >= MAX_HELLOS or self._hellos[host] >= MAX_HELLOS_PER_HOST:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many hellos at once")
        self._hellos[host] += 1
        try:
            async with asyncio.timeout(HELLO_TIMEOUT):
                return await answer_hello(
                    context,
                    self._membership,
                    self._handler.own_offer(),
                    self._decide,
                    lambda node_id: self._identity_problem(node_id, context),
                )
        finally:
            self._hellos[host] -= 1
            if not self._hellos[host]:
                del self._hellos[host]

    def _warn(self, problem: str) -> None:
        """At most one line a second, so that strangers cannot fill the log."""
        now = time.monotonic()
        if now - self._warned_at < 1.0:
            self._unwarned += 1
            return
        more = f" (and {self._unwarned} more like it)" if self._unwarned else ""
        log.warning("%s%s", problem, more)
        self._warned_at, self._unwarned = now, 0

    def _decide(self, hello: Hello) -> HelloReply:
        if not self.sessions.has_room(hello.offer.node_id, self._max_peers):
            return HelloReply(
                offer=hello.offer, reason=f"this node has {self._max_peers} peers already"
            )
        return self._handler.on_hello(hello)

    def _identity_problem(self, node_id: str, context: Any) -> str:
        if self._tls is None or not self._tls.check_identity:
            return ""
        names = tls_files.names_in(context.auth_context())
        return "" if node_id in names else f"its certificate names {sorted(names)}, not {node_id!r}"

    async def _heartbeats(self, peer: str, context: Any) -> None:
        while (data := await read_frame(context)) is not None:
            number, offer = wire.read_heartbeat(data)
            if offer.node_id != peer:
                raise BadMessage("offer.node_id", f"{offer.node_id!r} on the stream of {peer!r}")
            self._handler.on_offer(offer)
            await context.write(wire.heartbeat_frame(number, self._handler.own_offer()))

    async def _messages(self, peer: str, context: Any) -> None:
        while (data := await read_frame(context)) is not None:
            for message in decode_all(data):
                try:
                    await self._handler.on_message(peer, message)
                # Whatever one message does, the stream carries others as well.
                except Exception as error:  # noqa: BLE001
                    await self._refuse(peer, message, error, context)

    async def _refuse(self, peer: str, message: Message, error: Exception, context: Any) -> None:
        code = code_of(error)
        if code is grpc.StatusCode.INTERNAL:
            kind, of = type(message).__name__, {"sequence_id": message.sequence_id}
            log.error("a %s of %s failed", kind, peer, exc_info=error, extra=of)
        refused = wire.RefusedFrame(
            sequence_id=message.sequence_id, epoch=message.epoch, code=code.name, reason=str(error)
        )
        await context.write(wire.refused_frame(refused))


def _host_of(peer: str) -> str:
    """`ipv4:10.0.0.1:1234` -> `ipv4:10.0.0.1`."""
    return peer.rpartition(":")[0]
