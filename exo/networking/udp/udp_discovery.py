"""`UDPDiscovery`: nodes of one local network find each other by datagrams: IPv4 broadcast and IPv6
multicast.

A node announces itself on every interface, quickly at first, and dials the nodes that announce the
same cluster.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from exo.contract import DISCOVERY_PORT
from exo.networking.discovery import PeerFactory
from exo.networking.errors import BadMessage
from exo.networking.hello import Membership
from exo.networking.pooled_discovery import PooledDiscovery
from exo.networking.udp.announcement import Announcement, decode_announcement, encode_announcement
from exo.networking.udp.interfaces import (
    MULTICAST_GROUP,
    Interface,
    interfaces,
    open_ipv4,
    open_ipv6,
)
from exo.networking.udp.sightings import Sightings

log = logging.getLogger(__name__)

_EAGER = (0.0, 0.1, 0.3, 0.6)  # seconds between the first announcements
MAX_DATAGRAMS_PER_SECOND = 500


class UDPDiscovery(PooledDiscovery):
    """grpc_port: the port that peers are to dial, asked for each announcement.
    port: the UDP port, the same on all nodes.
    interval: seconds between announcements.
    expiry: seconds after which an address that is not heard any more is forgotten.
    """

    def __init__(
        self,
        node_id: str,
        grpc_port: Callable[[], int],
        create_peer_handle: PeerFactory,
        membership: Membership,
        *,
        port: int = DISCOVERY_PORT,
        incarnation: int = 0,
        interval: float = 1.0,
        expiry: float = 10.0,
        find_interfaces: Callable[[], list[Interface]] = interfaces,
    ) -> None:
        super().__init__(node_id, create_peer_handle)
        if not 1 <= port <= 65535:
            raise ValueError(f"port: {port} must be 1 to 65535")
        if interval <= 0 or expiry <= interval:
            raise ValueError(
                f"expiry: {expiry} s must be more than interval: {interval} s, and that more than 0"
            )
        self._grpc_port = grpc_port
        self._membership = membership
        self._port = port
        self._incarnation = incarnation
        self._interval = interval
        self._expiry = expiry
        self._find_interfaces = find_interfaces
        self._sightings = Sightings(expiry)
        self._transports: dict[int, asyncio.DatagramTransport] = {}
        self._news = asyncio.Event()
        self._budget = MAX_DATAGRAMS_PER_SECOND
        self._warned = False

    async def _do_initialize(self) -> None:
        await super()._do_initialize()
        self._sightings = Sightings(self._expiry)
        await self._listen(socket.AF_INET, open_ipv4(self._port))
        sock = open_ipv6(self._port, self._find_interfaces())
        if sock is not None:
            await self._listen(socket.AF_INET6, sock)
        self._task_manager.start_task("announce", self._announce)
        self._task_manager.start_task("follow sightings", self._follow)

    async def _do_cleanup(self) -> None:
        transports, self._transports = self._transports, {}
        for transport in transports.values():
            transport.abort()
        await super()._do_cleanup()

    async def _do_health_check(self) -> bool:
        return bool(self._transports) and not any(
            each.is_closing() for each in self._transports.values()
        )

    async def _listen(self, family: int, sock: socket.socket) -> None:
        try:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Protocol(self._received), sock=sock
            )
        except BaseException:
            sock.close()
            raise
        self._transports[family] = transport

    async def _announce(self) -> None:
        for delay in _EAGER:
            await asyncio.sleep(delay)
            self._send()
        while True:
            await asyncio.sleep(self._interval)
            self._budget = MAX_DATAGRAMS_PER_SECOND
            self._send()
            if self._sightings.expire(time.monotonic()):
                self._news.set()

    async def _follow(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            await self._pool.update(self._sightings.candidates(), keep_connected=True)
            self._send()  # a node that is new may not have heard this one

    def _send(self) -> None:
        port = self._grpc_port()
        if not port:
            return
        announcement = Announcement(
            cluster=self._membership.cluster,
            node_id=self._node_id,
            grpc_port=port,
            incarnation=self._incarnation,
        )
        data = encode_announcement(announcement, self._membership.secret)
        for interface in self._find_interfaces():
            if interface.broadcast and socket.AF_INET in self._transports:
                self._transports[socket.AF_INET].sendto(data, (interface.broadcast, self._port))
            if interface.index and socket.AF_INET6 in self._transports:
                target = (MULTICAST_GROUP, self._port, 0, interface.index)
                self._transports[socket.AF_INET6].sendto(data, target)

    def _received(self, data: bytes, address: str) -> None:
        self._budget -= 1
        if self._budget < 0:
            return  # a flood: the rest of this second is ignored
        try:
            announcement = decode_announcement(data, self._membership.secret)
        except BadMessage as error:
            log.debug("datagram of %s dropped: %s", address, error)
            return
        if announcement.cluster != self._membership.cluster:
            return
        if announcement.node_id == self._node_id:
            self._own_id_heard(announcement, address)
        elif self._sightings.see(announcement, address, time.monotonic()):
            self._news.set()

    def _own_id_heard(self, announcement: Announcement, address: str) -> None:
        if announcement.incarnation != self._incarnation and not self._warned:
            self._warned = True
            log.warning(
                "another node at %s calls itself %r: give each its own --node-id",
                address,
                self._node_id,
            )


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self, received: Callable[[bytes, str], None]) -> None:
        self._received = received

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        link_local = len(addr) == 4 and addr[3]  # means nothing without its interface
        self._received(data, f"{addr[0]}%{addr[3]}" if link_local else str(addr[0]))

    def error_received(self, exc: Exception) -> None:
        # An interface without a route, a peer without a listener: others may work.
        log.debug("udp: %s", exc)
