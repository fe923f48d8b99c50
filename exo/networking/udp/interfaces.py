"""The sockets of UDP discovery: where to send and where to listen. Interfaces are listed on Linux;
elsewhere there is only the general broadcast address.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass

from exo.utils.listening import CannotListen

# Link-local, transient group of our own ("exo" in ASCII).
MULTICAST_GROUP = "ff12::6578:6f"
_SIOCGIFFLAGS = 0x8913
_SIOCGIFBRDADDR = 0x8919
_UP, _BROADCAST, _LOOPBACK = 0x1, 0x2, 0x8


@dataclass(frozen=True, slots=True)
class Interface:
    """broadcast: the IPv4 address that reaches all nodes on it, "" for none. index: for IPv6
    multicast.
    """

    name: str
    index: int
    broadcast: str


def interfaces() -> list[Interface]:
    """The interfaces that are up. The loopback is one of them: it joins several nodes of one
    machine.
    """
    if not sys.platform.startswith("linux"):
        return [Interface("", 0, "255.255.255.255")]
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for index, name in socket.if_nameindex():
            flags = _flags(probe, name)
            if flags & _UP:
                found.append(Interface(name, index, _broadcast(probe, name, flags)))
    return found


def open_ipv4(port: int) -> socket.socket:
    """A socket that shares its port with other nodes of this machine: broadcasts reach all of them.
    Raises `CannotListen`.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        _share(sock)
        sock.bind(("0.0.0.0", port))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise CannotListen("0.0.0.0", port, "discovery_port", error) from error
    return sock


def open_ipv6(port: int, on: list[Interface]) -> socket.socket | None:
    """A socket that joined the group on every interface where it can; None without IPv6."""
    try:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    except OSError:
        return None
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _share(sock)
        sock.bind(("::", port))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
        joined = [each for each in on if _join(sock, each)]
        sock.setblocking(False)
    except OSError:
        sock.close()
        return None
    if not joined:
        sock.close()
        return None
    return sock


def _join(sock: socket.socket, interface: Interface) -> bool:
    group = socket.inet_pton(socket.AF_INET6, MULTICAST_GROUP) + struct.pack("@I", interface.index)
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
    except OSError:
        return False
    return True


def _share(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def _flags(probe: socket.socket, name: str) -> int:
    try:
        answer = fcntl.ioctl(
            probe.fileno(), _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode()[:15], 0)
        )
    except OSError:
        return 0
    return int(struct.unpack("16sH14x", answer)[1])


def _broadcast(probe: socket.socket, name: str, flags: int) -> str:
    if flags & _LOOPBACK:
        return "127.255.255.255"
    if not flags & _BROADCAST:
        return ""
    try:
        answer = fcntl.ioctl(
            probe.fileno(), _SIOCGIFBRDADDR, struct.pack("16s16x", name.encode()[:15])
        )
    except OSError:
        return ""
    return socket.inet_ntoa(answer[20:24])
