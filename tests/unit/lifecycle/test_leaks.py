"""Leak detection: what counts, what is given time to go, and that time is spent only once."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from exo.lifecycle.testing.holdings import Holdings, Kind, private_temporary_folder
from exo.lifecycle.testing.leaks import MOMENT, LeakDetector, gained_since

# Starts a process that creates the file it is given and holds it until its input ends. The process
# in between makes it a grandchild of the test, hence none of its children.
HOLDER = """
import subprocess, sys
program = "import sys; f = open(sys.argv[1], 'w'); print('held', flush=True); sys.stdin.read()"
subprocess.run([sys.executable, "-c", program, sys.argv[1]])
"""


@pytest.fixture
def strays() -> Iterator[list[int]]:
    """Descriptors that a test leaks, closed at its end."""
    kept: list[int] = []
    yield kept
    for descriptor in kept:
        os.close(descriptor)


async def test_patience_is_spent_once_for_each_kind_and_only_where_it_may_help(strays: list[int]):
    detector = LeakDetector(patience=0.6)
    for _ in range(10):
        before = Holdings.now()
        strays.append(os.open("/dev/null", os.O_RDONLY))
        assert [leak.kind for leak in await detector.leaks_since(before)] == [Kind.DESCRIPTOR]
    assert detector.waited < 0.5
    for _ in range(10):
        before = Holdings.now()
        strays.append(socket.create_server(("127.0.0.1", 0)).detach())
        assert [leak.kind for leak in await detector.leaks_since(before)] == [Kind.SOCKET]
    assert 0.6 <= detector.waited < 1.2


async def test_a_socket_that_python_keeps_open_needs_no_patience():
    detector = LeakDetector(patience=3600)
    before = Holdings.now()
    with socket.create_server(("127.0.0.1", 0)):
        async with asyncio.timeout(30):
            assert [leak.kind for leak in await detector.leaks_since(before)] == [Kind.SOCKET]
    assert detector.waited < 1.0


async def test_a_transport_that_is_closing_gets_patience():
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # More than the system buffers for a client that does not read: it cannot be flushed yet.
        writer.write(bytes(1 << 26))
        writer.close()

    before = Holdings.now()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    server.close()
    asyncio.get_running_loop().call_later(2 * MOMENT, writer.transport.abort)
    async with asyncio.timeout(30):
        assert await gained_since(before, patience=3600) == []


async def test_what_goes_in_time_is_no_leak_and_is_not_waited_for_longer():
    before = Holdings.now()
    server = socket.create_server(("127.0.0.1", 0))
    asyncio.get_running_loop().call_later(0.02, server.close)
    async with asyncio.timeout(30):
        assert await gained_since(before, patience=3600) == []


async def test_what_only_the_collector_closes_is_no_leak():
    class Circle:
        def __init__(self) -> None:
            self.me = self
            self.queue = select.epoll()

    before = Holdings.now()
    Circle()
    assert await gained_since(before, patience=1.0) == []


async def test_shared_memory_that_another_process_holds_is_not_ours():
    segment = Path("/dev/shm") / f"exo-test-{uuid.uuid4().hex}"
    before = Holdings.now()
    with start_holder(segment) as middle:
        assert middle.stdin is not None
        assert middle.stdout is not None
        assert middle.stdout.readline() == b"held\n"
        assert Kind.SHARED_MEMORY not in kinds_since(before)
        middle.stdin.close()
        middle.wait()
        assert Kind.SHARED_MEMORY in kinds_since(before)
    segment.unlink()


def start_holder(segment: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", HOLDER, str(segment)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def kinds_since(before: Holdings) -> set[Kind]:
    return {leak.kind for leak in Holdings.now().gained_since(before) if leak.is_ours()}


def test_temporary_files_go_to_a_folder_of_the_check_and_back():
    usual = tempfile.gettempdir()
    with private_temporary_folder() as folder:
        made = Path(tempfile.mkdtemp())
        assert made.parent == folder == Path(tempfile.gettempdir())
    assert not folder.exists()
    assert tempfile.gettempdir() == usual
