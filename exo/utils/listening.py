"""Opens listening sockets, and the error for one that cannot be opened.

The error names host, port and the setting to change. Knows no server: each server passes the name
of its setting, as the command line and the config file spell it.
"""

from __future__ import annotations

import errno
import socket
from typing import Final

BACKLOG: Final = 1024
_ADDRESS_IS_WRONG: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class CannotListen(OSError):
    """`setting` is the one to change: that of the port, or `host` when no port would help."""

    def __init__(self, host: str, port: int, setting: str, error: OSError) -> None:
        super().__init__(
            error.errno, f"cannot listen on {host} port {port}: {error.strerror or error}"
        )
        self.host = host
        self.port = port
        wrong_host = isinstance(error, socket.gaierror) or error.errno in _ADDRESS_IS_WRONG
        self.setting = "host" if wrong_host else setting


def listening_socket(host: str, port: int, setting: str) -> socket.socket:
    """A non-blocking socket that listens; port 0 takes any free port.

    setting: the setting of the port, such as `api_port`. Raises `CannotListen`.
    """
    try:
        return _listening(host, port)
    except OSError as error:
        raise CannotListen(host, port, setting, error) from error


def _listening(host: str, port: int) -> socket.socket:
    family, kind, proto, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    made = socket.socket(family, kind, proto)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind(address)
        # Two sockets may be bound to one port, but only one may listen: find out here, not in a
        # library later.
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made
