"""`Connection`: a channel to one peer with its Control and Data streams, after their hellos. Knows
no heartbeats.
"""

from __future__ import annotations

import traceback
from asyncio import timeout
from collections.abc import Callable
from typing import Any

import grpc

from exo.networking.errors import PeerRefused
from exo.networking.grpc.handshake import offer_hello
from exo.networking.grpc.options import CLIENT_OPTIONS, SERVICE
from exo.networking.grpc.tls import TlsFiles, client_credentials
from exo.networking.hello import Membership
from exo.topology.offer import NodeOffer


class Connection:
    """target: `host:port`. own_offer: what this node says of itself in each hello. hello_timeout:
    seconds for each hello.
    """

    def __init__(
        self,
        target: str,
        membership: Membership,
        own_offer: Callable[[], NodeOffer],
        tls: TlsFiles | None,
        hello_timeout: float,
    ) -> None:
        self._target = target
        self._membership = membership
        self._own_offer = own_offer
        self._tls = tls
        self._hello_timeout = hello_timeout
        self._channel: Any = None
        self.control: Any = None
        self.data: Any = None

    async def open(self, expected_id: str | None, refuse_when: Callable[[str], str]) -> NodeOffer:
        """Open both streams. Returns the peer's offer. Raises `PeerLost`, `BadMessage`,
        `TimeoutError` or `AioRpcError`.
        """
        if self._tls is None:
            self._channel = grpc.aio.insecure_channel(self._target, options=CLIENT_OPTIONS)
        elif self._tls.check_identity:
            expected_id = expected_id or await self._ask_id(self._tls)
            self._channel = self._secure_channel(self._tls, expected_id)
        else:
            self._channel = self._secure_channel(self._tls, self._tls.server_name)
        self.control, offer = await self._stream("Control", expected_id, refuse_when)
        self.data, _ = await self._stream("Data", offer.node_id, refuse_when)
        return offer

    async def close(self) -> None:
        self.cancel()
        channel, self._channel, self.control, self.data = self._channel, None, None, None
        if channel is not None:
            await channel.close()

    def cancel(self) -> None:
        """End both streams now."""
        for call in (self.data, self.control):
            if call is not None:
                call.cancel()

    async def status(self) -> str:
        """How the stream that has ended came to its end."""
        for call in (self.control, self.data):
            if call is not None and call.done():
                return f"{(await call.code()).name}: {await call.details()}"
        return "its stream ended"

    async def _stream(
        self, method: str, expected_id: str | None, refuse_when: Callable[[str], str]
    ) -> tuple[Any, NodeOffer]:
        call = self._channel.stream_stream(f"/{SERVICE}/{method}")()
        try:
            async with timeout(self._hello_timeout):
                offer = await offer_hello(
                    call, self._membership, self._own_offer(), expected_id, refuse_when
                )
        except BaseException as error:
            call.cancel()
            del call
            _forget_frames(error)
            raise
        return call, offer

    async def _ask_id(self, tls: TlsFiles) -> str:
        """The id that the peer says it has. The real connection then demands a certificate for that
        very name.
        """
        ids: list[str] = []

        def note(node_id: str) -> str:
            ids.append(node_id)
            return "only asked for its id"

        self._channel = self._secure_channel(tls, tls.server_name)
        try:
            await self._stream("Control", None, note)
        except PeerRefused:
            if not ids:
                raise
        await self._channel.close()
        return ids[0]

    def _secure_channel(self, tls: TlsFiles, name: str) -> Any:
        """To a server whose certificate is valid for `name`."""
        options = [*CLIENT_OPTIONS, ("grpc.ssl_target_name_override", name)]
        return grpc.aio.secure_channel(self._target, client_credentials(tls), options=options)


def _forget_frames(error: BaseException) -> None:
    """Empty the finished frames of its traceback. Otherwise whatever keeps the error keeps the
    stream, and with it the socket, open.
    """
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        each = chain.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            chain += [each.__cause__, each.__context__]
