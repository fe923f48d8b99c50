"""Ports for servers whose number must be known before they start, or must stay while they are down.

They lie below the range from which the kernel picks ports by itself. So no outgoing
connection and no bind to port 0 can take one between our check and the server's bind, or while a
server restarts.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
from collections.abc import Iterator
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST, _LAST = 20_000, 29_999  # above the well-known ones, below those of Kubernetes' NodePorts


def _numbers() -> Iterator[int]:
    """Each once before any is repeated. The start is random: another test run may be going on."""
    first_of_kernel = int(_EPHEMERAL.read_text().split()[0]) if _EPHEMERAL.exists() else _LAST + 1
    ports = range(_FIRST, min(_LAST + 1, first_of_kernel))
    assert ports, (
        f"the kernel hands out ports from {first_of_kernel} on: none is left for the tests"
    )
    start = random.SystemRandom().randrange(len(ports))
    return itertools.cycle([*ports[start:], *ports[:start]])


_next = _numbers()


def free_ports(count: int) -> list[int]:
    """Free for TCP and UDP on every address, and not handed out before by this process."""
    return list(itertools.islice(filter(_is_free, _next), count))


def _is_free(port: int) -> bool:
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as probe:
                probe.bind(("0.0.0.0", port))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def deaf_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses connections: bound, so that it is ours, not listening."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
