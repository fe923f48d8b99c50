"""Sockets that listen, and the one error of every listener that cannot: host, port and the setting
that would help.

Knows no server: each names its own setting, by the key that the command line and the config file
know it by.
"""

from __future__ import annotations

import errno
import socket
from typing import Final

BACKLOG: Final = 1024
_ADDRESS_IS_WRONG: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class CannotListen(OSError):
    """`setting` is the one to change: the port's, like `api_port`, or `host` where no port would
    do.
    """

    def __init__(self, host: str, port: int, setting: str, error: OSError) -> None:
        super().__init__(
            error.errno, f"cannot listen on {host} port {port}: {error.strerror or error}"
        )
        self.host = host
        self.port = port
        wrong_host = isinstance(error, socket.gaierror) or error.errno in _ADDRESS_IS_WRONG
        self.setting = "host" if wrong_host else setting


def listening_socket(host: str, port: int, setting: str) -> socket.socket:
    """Non-blocking; port 0 takes any free one. `setting`: the key of the port's. Raises
    `CannotListen`.
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
        # Of two that bind at the same moment only one may: better found here than in a library.
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made
