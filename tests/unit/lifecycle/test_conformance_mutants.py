"""The conformance suite itself: a good resource passes, and each mutant here is caught."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import select
import socket
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from exo.lifecycle import AsyncResource, ResourceState
from exo.lifecycle.testing.conformance import ConformanceError, check_resource


class Good(AsyncResource):
    """Opens a socket, a file, a task and a thread pool in steps, and closes them in reverse."""

    RESOURCE_TYPE = "specimen"

    def __init__(self) -> None:
        super().__init__(initialize_timeout=5, cleanup_timeout=5, health_check_timeout=1)
        self._socket: socket.socket | None = None
        self._file: IO[bytes] | None = None
        self._pool: ThreadPoolExecutor | None = None

    async def _do_initialize(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        await asyncio.sleep(0)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by the cleanup hook
        await asyncio.sleep(0)
        self._pool = ThreadPoolExecutor(1)
        self._pool.submit(int).result()
        self._task_manager.start_task("serve", asyncio.Event().wait)
        await asyncio.sleep(0)

    async def _do_cleanup(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
        await asyncio.sleep(0)
        file, self._file = self._file, None
        if file is not None:
            file.close()
        await asyncio.sleep(0)
        server, self._socket = self._socket, None
        if server is not None:
            server.close()

    async def _do_health_check(self) -> bool:
        return self._socket is not None and self._socket.fileno() >= 0


class Plain(AsyncResource):
    """Opens nothing, but waits once in each hook."""

    async def _do_initialize(self) -> None:
        await asyncio.sleep(0)

    async def _do_cleanup(self) -> None:
        await asyncio.sleep(0)


# What mutants leak, removed after each test, and what their threads wait for until then.
STRAYS: list[int] = []
CHILDREN: list[subprocess.Popen[bytes]] = []
SEGMENTS: list[Path] = []
OVER = threading.Event()


def lose(owner: socket.socket | IO[bytes] | None) -> None:
    """Leak the descriptor that `owner` holds, without the interpreter's ResourceWarning."""
    if isinstance(owner, socket.socket):
        STRAYS.append(owner.detach())
    elif owner is not None:
        STRAYS.append(os.dup(owner.fileno()))
        owner.close()


def start_child() -> subprocess.Popen[bytes]:
    CHILDREN.append(subprocess.Popen(["sleep", "3600"]))
    return CHILDREN[-1]


@pytest.fixture(autouse=True)
def close_strays() -> Iterator[None]:
    OVER.clear()
    yield
    OVER.set()
    while STRAYS:
        os.close(STRAYS.pop())
    while CHILDREN:
        CHILDREN[-1].kill()
        CHILDREN.pop().wait()
    while SEGMENTS:
        SEGMENTS.pop().unlink()


class ForgetsItsTask(Plain):
    async def _do_initialize(self) -> None:
        await super()._do_initialize()
        self.stray = asyncio.create_task(asyncio.Event().wait(), name="stray")


class ForgetsItsSocket(Good):
    async def _do_cleanup(self) -> None:
        lose(self._socket)
        self._socket = None
        await super()._do_cleanup()


class LeaksWhenItsStartFails(Good):
    """Closes properly only after a complete start."""

    whole = False

    async def _do_initialize(self) -> None:
        self.whole = False
        await super()._do_initialize()
        self.whole = True

    async def _do_cleanup(self) -> None:
        if self.whole:
            await super()._do_cleanup()
        else:
            lose(self._socket)
            self._socket = None
            await super()._do_cleanup()


class StumblesOverAHalfDoneStart(Good):
    async def _do_cleanup(self) -> None:
        if self._pool is None:
            lose(self._socket)
            lose(self._file)
            self._socket = self._file = None
            raise AttributeError("'NoneType' object has no attribute 'shutdown'")
        await super()._do_cleanup()


class CannotStartAgain(Plain):
    started = False

    async def _do_initialize(self) -> None:
        if self.started:
            raise RuntimeError("executor already shut down")
        self.started = True
        await super()._do_initialize()


class IgnoresCancellation(Plain):
    async def _do_initialize(self) -> None:
        for _ in range(3):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)


class IsNeverHealthy(Plain):
    async def _do_health_check(self) -> bool:
        return None  # type: ignore[return-value]


class StartsTwiceAtOnce(Plain):
    async def initialize(self, timeout: float | None = None) -> bool:
        await self._do_initialize()
        return await super().initialize(timeout)


class ReopensWhenAsked(Plain):
    async def ensure_ready(self, *, allow_degraded: bool = True) -> None:
        if self.state is ResourceState.CLOSED:
            await self.initialize()
        await super().ensure_ready(allow_degraded=allow_degraded)


class ForgetsItsThread(Plain):
    async def _do_initialize(self) -> None:
        await super()._do_initialize()
        threading.Thread(target=OVER.wait, name="stray thread", daemon=True).start()


class ForgetsItsFile(Good):
    async def _do_cleanup(self) -> None:
        lose(self._file)
        self._file = None
        await super()._do_cleanup()


class ForgetsItsDevice(Plain):
    async def _do_initialize(self) -> None:
        await super()._do_initialize()
        STRAYS.append(os.open("/dev/null", os.O_RDONLY))


class ForgetsItsEventQueue(Plain):
    async def _do_initialize(self) -> None:
        await super()._do_initialize()
        with select.epoll() as queue:
            STRAYS.append(os.dup(queue.fileno()))


class ForgetsItsChild(Plain):
    async def _do_initialize(self) -> None:
        await super()._do_initialize()
        start_child()


class KillsItsChildOnly(Plain):
    """Does not wait for it, so the system keeps its entry."""

    async def _do_initialize(self) -> None:
        await super()._do_initialize()
        self.child = start_child()

    async def _do_cleanup(self) -> None:
        await super()._do_cleanup()
        self.child.kill()


class ForgetsItsSharedMemory(Plain):
    async def _do_initialize(self) -> None:
        await super()._do_initialize()
        segment = Path("/dev/shm") / f"exo-test-{uuid.uuid4().hex}"
        segment.touch()
        SEGMENTS.append(segment)


class ForgetsItsTemporaryFolder(Plain):
    async def _do_initialize(self) -> None:
        await super()._do_initialize()
        tempfile.mkdtemp(prefix="stray-")


class ForgetsItsTemporaryFile(Plain):
    async def _do_initialize(self) -> None:
        await super()._do_initialize()
        descriptor, _ = tempfile.mkstemp(prefix="stray-")
        os.close(descriptor)


MUTANTS = {
    ForgetsItsTask: "task 'stray' still runs",
    ForgetsItsSocket: "socket left open",
    LeaksWhenItsStartFails: "after the roll-back, socket left open",
    StumblesOverAHalfDoneStart: "roll-back failed",
    CannotStartAgain: "executor already shut down",
    IgnoresCancellation: "swallows its cancellation",
    IsNeverHealthy: "returned None",
    StartsTwiceAtOnce: "runs its init hook",
    ReopensWhenAsked: "re-opens it after cleanup",
    ForgetsItsThread: "thread 'stray thread' still runs",
    ForgetsItsFile: "left open",
    ForgetsItsDevice: "/dev/null left open",
    ForgetsItsEventQueue: "[eventpoll] left open",
    ForgetsItsChild: "child process ",
    KillsItsChildOnly: "ended but was not waited for",
    ForgetsItsSharedMemory: "shared memory /dev/shm/exo-test-",
    ForgetsItsTemporaryFolder: "temporary folder stray-",
    ForgetsItsTemporaryFile: "temporary file stray-",
}


async def test_a_good_resource_passes():
    await check_resource(Good)


async def test_an_async_factory_is_fine():
    async def make() -> Good:
        return Good()

    await check_resource(make)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
async def test_each_mutant_is_caught_for_its_reason(mutant: type[AsyncResource]):
    with pytest.raises(ConformanceError) as caught:
        await check_resource(mutant, patience=0.05, points=3, stop_at_first=True)
    assert MUTANTS[mutant] in str(caught.value)
    assert mutant.__name__ in str(caught.value)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


# Leaks that nothing can close any more: patience would not help.
CERTAIN = [
    ForgetsItsTask,
    ForgetsItsFile,
    ForgetsItsDevice,
    ForgetsItsEventQueue,
    ForgetsItsChild,
    KillsItsChildOnly,
    ForgetsItsSharedMemory,
    ForgetsItsTemporaryFolder,
    ForgetsItsTemporaryFile,
]


@pytest.mark.parametrize("mutant", CERTAIN, ids=lambda mutant: mutant.__name__)
async def test_the_whole_suite_reports_a_certain_leak_without_patience(mutant: type[AsyncResource]):
    async with asyncio.timeout(30):
        with pytest.raises(ConformanceError) as caught:
            await check_resource(mutant, patience=3600)
    assert len(caught.value.violations) >= 3
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


class NeverClosesItsSocket(Plain):
    async def _do_initialize(self) -> None:
        await super()._do_initialize()
        self.socket = socket.create_server(("127.0.0.1", 0))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_leak_is_found_even_if_the_collector_frees_that_of_an_earlier_scenario():
    async with asyncio.timeout(30):
        with pytest.raises(ConformanceError, match="after cleanup, socket left open"):
            await check_resource(NeverClosesItsSocket, patience=3600)
    gc.collect()


async def test_what_is_no_resource_is_refused():
    with pytest.raises(TypeError, match="AsyncResource"):
        await check_resource(object)  # type: ignore[arg-type]
