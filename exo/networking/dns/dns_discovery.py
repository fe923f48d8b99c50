"""`DnsDiscovery`: every A and AAAA record of one name is a peer. Needs no API server and no token.

The name may be missing while the first pods start. The resolver is the system's, in a thread: it
honours /etc/resolv.conf and /etc/hosts, and one that hangs delays only the next look-up.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable

from exo.contract import GRPC_PORT
from exo.lifecycle import ResourceDegraded
from exo.networking.discovery import PeerFactory
from exo.networking.peer_pool import Candidate
from exo.networking.pooled_discovery import PooledDiscovery

log = logging.getLogger(__name__)

Resolver = Callable[[str], Awaitable[list[str]]]
# getaddrinfo: the name does not exist (yet), or has no address (yet).
_NOT_YET = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


async def resolve(name: str) -> list[str]:
    """The addresses of `name`, sorted; none where the name does not exist. Raises `OSError` where
    DNS does not work.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in _NOT_YET:
            return []
        raise
    return sorted({str(address[0]) for *_, address in found})


class DnsDiscovery(PooledDiscovery):
    """interval: seconds between look-ups. Two failed look-ups in a row degrade the discovery; a
    missing name does not.
    """

    def __init__(
        self,
        node_id: str,
        name: str,
        create_peer_handle: PeerFactory,
        *,
        port: int = GRPC_PORT,
        interval: float = 1.0,
        resolver: Resolver = resolve,
        lookup_timeout: float = 5.0,
    ) -> None:
        super().__init__(node_id, create_peer_handle)
        if not 1 <= len(name) <= 253:
            raise ValueError(f"name: {len(name)} characters, must be 1 to 253")
        if not 1 <= port <= 65535:
            raise ValueError(f"port: {port} must be 1 to 65535")
        self._name = name
        self._peer_port = port
        self._interval = interval
        self._resolver = resolver
        self._lookup_timeout = lookup_timeout
        self._failures = 0
        self._problem = ""

    async def _do_initialize(self) -> None:
        await super()._do_initialize()
        self._failures, self._problem = 0, ""
        self._task_manager.start_task(f"resolve {self._name}", self._follow)

    async def _do_health_check(self) -> bool:
        if self._failures >= 2:
            problem = f"{self._name} cannot be resolved: {self._problem}; the earlier peers stay"
            raise ResourceDegraded(problem, resource_id=self.resource_id, state=self.state)
        return True

    async def _follow(self) -> None:
        while True:
            await self._look_up()
            await asyncio.sleep(self._interval)

    async def _look_up(self) -> None:
        try:
            async with asyncio.timeout(self._lookup_timeout):
                addresses = await self._resolver(self._name)
        except (OSError, TimeoutError, UnicodeError) as error:
            self._failures += 1
            self._problem = str(error) or f"no answer within {self._lookup_timeout} s"
            if self._failures == 2:
                log.warning(
                    "%s cannot be resolved: %s; the earlier peers stay", self._name, self._problem
                )
            return
        self._failures = 0
        candidates = [
            Candidate(None, address, self._peer_port)
            for address in addresses
            if _is_address(address)
        ]
        # A peer that is connected stays until it is lost: records lag behind, streams do not.
        await self._pool.update(candidates, keep_connected=True)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
