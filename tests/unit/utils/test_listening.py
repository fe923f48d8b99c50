"""`CannotListen` names host, port and the setting to change; the reason comes from the system."""

from __future__ import annotations

import errno
import os
import socket

import grpc
import pytest

from exo.networking.grpc.listening import listen
from exo.utils.listening import CannotListen, listening_socket

NOBODYS = "203.0.113.1"


def taken_port(family: socket.AddressFamily, host: str) -> socket.socket:
    return socket.create_server((host, 0), family=family)


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_a_taken_port_is_reported_with_its_setting(family: socket.AddressFamily, host: str) -> None:
    with taken_port(family, host) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen) as refused:
            listening_socket(host, port, "api_port")
    error = refused.value
    assert (error.host, error.port, error.setting, error.errno) == (
        host,
        port,
        "api_port",
        errno.EADDRINUSE,
    )
    assert error.strerror == f"cannot listen on {host} port {port}: Address already in use"


def test_an_address_that_is_not_ours_is_a_matter_of_the_host() -> None:
    with pytest.raises(CannotListen) as refused:
        listening_socket(NOBODYS, 0, "api_port")
    assert (refused.value.host, refused.value.setting) == (NOBODYS, "host")
    assert (
        refused.value.strerror
        == f"cannot listen on {NOBODYS} port 0: Cannot assign requested address"
    )


@pytest.mark.parametrize(
    ("error", "setting"),
    [
        (OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)), "grpc_port"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "grpc_port"),
        (OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL)), "host"),
        (OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT)), "host"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "host"),
        (OSError("of another kind"), "grpc_port"),
    ],
)
def test_what_the_system_says_decides_which_setting_helps(error: OSError, setting: str) -> None:
    refused = CannotListen("::1", 80, "grpc_port", error)
    assert refused.setting == setting
    assert refused.strerror == f"cannot listen on ::1 port 80: {error.strerror or error}"


@pytest.mark.parametrize("setting", ["grpc_port", "health_port"])
async def test_a_grpc_server_reports_the_same(setting: str) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    with taken_port(socket.AF_INET, "127.0.0.1") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen) as busy:
            listen(server, "127.0.0.1", port, setting=setting)
        with pytest.raises(CannotListen) as wrong:
            listen(server, NOBODYS, port, setting=setting)
    assert (busy.value.host, busy.value.port, busy.value.setting) == ("127.0.0.1", port, setting)
    assert (wrong.value.host, wrong.value.setting) == (NOBODYS, "host")


def test_what_listens_takes_connections_and_does_not_block() -> None:
    with (
        listening_socket("127.0.0.1", 0, "api_port") as made,
        socket.create_connection(made.getsockname()) as client,
    ):
        assert not made.getblocking()
        accepted, peer = made.accept()
        with accepted:
            assert peer == client.getsockname()


def test_a_socket_bound_at_the_same_moment_is_found_before_anything_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Linux lets two sockets bind (SO_REUSEADDR) and refuses `listen` on the second."""
    with socket.socket() as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]
        bind = socket.socket.bind

        def bind_and_lose(self: socket.socket, address: object) -> None:
            bind(self, address)  # type: ignore[arg-type]
            first.listen()

        monkeypatch.setattr(socket.socket, "bind", bind_and_lose)
        with pytest.raises(CannotListen, match="Address already in use"):
            listening_socket("127.0.0.1", port, "api_port")
