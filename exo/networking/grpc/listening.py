"""Makes a gRPC server listen, and says why where it cannot: gRPC's own text gives no reason. Knows
no service.
"""

from __future__ import annotations

import errno
import os

import grpc

from exo.utils.listening import CannotListen, listening_socket


def listen(
    server: grpc.aio.Server,
    host: str,
    port: int,
    credentials: grpc.ServerCredentials | None = None,
    *,
    setting: str,
) -> int:
    """Returns the port that it listens on, which the system chooses where `port` is 0. Raises
    `CannotListen`, which names `setting`.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        raise _reason(host, port, setting) from error


def _reason(host: str, port: int, setting: str) -> CannotListen:
    """What the system says about a plain socket at the same place. Where that one works, the port
    was in use a moment ago.
    """
    try:
        listening_socket(host, port, setting).close()
    except CannotListen as refused:
        return refused
    return CannotListen(
        host, port, setting, OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    )
