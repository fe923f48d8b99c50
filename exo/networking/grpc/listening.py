"""Where a gRPC server listens, and the error where it cannot: gRPC's own text names no fix. Knows no service."""

from __future__ import annotations

import errno

import grpc


def listen(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> int:
    """The port it listens on, which is another one where 0 was asked for. Raises `OSError` (EADDRINUSE)."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        says = f"cannot listen on {address}: the port is taken or the address is not ours"
        raise OSError(errno.EADDRINUSE, says) from error
