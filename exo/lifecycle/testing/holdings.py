"""`Holdings`: what this process holds at one moment, to be compared before and after. For tests.

Tasks, threads, descriptors of every sort, child processes, shared memory and, in a folder of its
own, temporary files. Where the system has no /proc or /dev/shm, that part stays empty.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_DESCRIPTORS: Final = Path("/proc/self/fd")
_THREADS: Final = Path("/proc/self/task")
_SHARED_MEMORY: Final = Path("/dev/shm")
# Threads of the event loop's own executor stay, by design.
_POOL_PREFIXES: Final = ("asyncio_",)


class Kind(Enum):
    """What can be left behind."""

    TASK = "task"
    THREAD = "thread"
    # Pipes too.
    SOCKET = "socket"
    # A file, a device, an event queue (epoll).
    DESCRIPTOR = "descriptor"
    PROCESS = "child process"
    SHARED_MEMORY = "shared memory"
    TEMPORARY = "temporary file or folder"


@dataclass(frozen=True, slots=True)
class Leak:
    """One thing that is held now and was not before; `text` says what."""

    text: str
    kind: Kind
    # Of shared memory, which another process may have left.
    path: Path | None = None

    def __str__(self) -> str:
        return self.text

    def is_ours(self) -> bool:
        """Whether this process has it. Reads what all processes hold, so it takes a while."""
        return self.path is None or _is_ours(self.path)


@dataclass(frozen=True, slots=True)
class Holdings:
    """Tasks and threads by identity, files by path, sockets and pipes by number."""

    tasks: frozenset[asyncio.Task[object]]
    threads: frozenset[threading.Thread]
    descriptors: Counter[str]
    # Each socket by its own name, such as `socket:[4711]`.
    sockets: frozenset[str]
    processes: frozenset[int]
    shared_memory: frozenset[Path]
    # The entries of `folder`.
    temporary: frozenset[Path]
    folder: Path | None

    @classmethod
    def now(cls, folder: Path | None = None) -> Holdings:
        """folder: whose entries count as temporary files; None: there are none."""
        targets = list(_descriptors())
        return cls(
            tasks=frozenset(task for task in asyncio.all_tasks() if not task.done()),
            threads=frozenset(
                t for t in threading.enumerate() if not t.name.startswith(_POOL_PREFIXES)
            ),
            descriptors=Counter(map(_sort_of, targets)),
            sockets=frozenset(each for each in targets if each.startswith("socket:")),
            processes=frozenset(_children()),
            shared_memory=_entries(_SHARED_MEMORY),
            temporary=frozenset() if folder is None else _entries(folder),
            folder=folder,
        )

    def gained_since(self, before: Holdings) -> list[Leak]:
        """What is held now and was not before; in shared memory, by whatever process."""
        gained = [
            Leak(f"task {task.get_name()!r} still runs", Kind.TASK)
            for task in self.tasks - before.tasks
        ]
        gained += [
            Leak(f"thread {thread.name!r} still runs", Kind.THREAD)
            for thread in self.threads - before.threads
        ]
        gained += [
            Leak(f"{name} left open ({number} more)", _kind_of(name))
            for name, number in (self.descriptors - before.descriptors).items()
        ]
        gained += [
            Leak(f"child process {_describe(pid)}", Kind.PROCESS)
            for pid in self.processes - before.processes
        ]
        gained += [
            Leak(f"shared memory {path} left behind", Kind.SHARED_MEMORY, path)
            for path in self.shared_memory - before.shared_memory
        ]
        gained += [
            Leak(
                f"temporary {'folder' if path.is_dir() else 'file'} {path.name} left behind",
                Kind.TEMPORARY,
            )
            for path in self.temporary - before.temporary
        ]
        return sorted(gained, key=str)


@contextlib.contextmanager
def private_temporary_folder() -> Iterator[Path]:
    """Make `tempfile` use a new, empty folder meanwhile; it is removed at the end.

    The usual folder belongs to all processes of the machine, so what appears there may be anyone's.
    """
    usual = tempfile.tempdir
    folder = Path(tempfile.mkdtemp(prefix="exo-check-"))
    tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = usual
        shutil.rmtree(folder, ignore_errors=True)


def _entries(folder: Path) -> frozenset[Path]:
    try:
        return frozenset(folder.iterdir())
    except OSError:
        return frozenset()


def _descriptors() -> Iterator[str]:
    """What each open descriptor is: a path, `socket:[4711]`, `anon_inode:[eventpoll]`, …"""
    for path in _entries(_DESCRIPTORS):
        # Closed meanwhile, as is the one that lists this folder.
        with contextlib.suppress(OSError):
            yield os.readlink(path)


def descriptor_of(number: int) -> str:
    """The same for the descriptor of this number; "" when it is not open."""
    try:
        return os.readlink(_DESCRIPTORS / str(number))
    except OSError:
        return ""


def _sort_of(descriptor: str) -> str:
    """Sockets and pipes count together; files and devices each by itself."""
    sort = descriptor.partition(":")[0]
    return sort if sort in ("socket", "pipe") else descriptor


def _kind_of(sort: str) -> Kind:
    return Kind.SOCKET if sort in ("socket", "pipe") else Kind.DESCRIPTOR


def _children() -> Iterator[int]:
    """The ids of this process's children, including those that ended and were not waited for."""
    for thread in _entries(_THREADS):
        with contextlib.suppress(OSError):
            yield from map(int, (thread / "children").read_text().split())


def _stat(pid: int) -> list[str] | None:
    """What follows the name in /proc/<pid>/stat: state, parent, …; None when it is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The name is in brackets and may itself hold brackets and spaces.
    return text.rpartition(")")[2].split()


def _describe(pid: int) -> str:
    try:
        name = (_PROC / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        name = "?"
    fields = _stat(pid)
    ended = fields is None or fields[0] == "Z"
    return f"{pid} ({name}) {'ended but was not waited for' if ended else 'still runs'}"


def _is_ours(path: Path) -> bool:
    """False for a file of another user, and for one that a process has open or mapped that is
    neither this one nor a child of it.
    """
    try:
        if path.stat().st_uid != os.getuid():
            return False
    except OSError:
        return False
    family = {os.getpid(), *_children()}
    others = (
        int(folder.name)
        for folder in _entries(_PROC)
        if folder.name.isdecimal() and int(folder.name) not in family
    )
    return not any(_holds(pid, path) for pid in others)


def _holds(pid: int, path: Path) -> bool:
    folder = _PROC / str(pid)
    try:
        if f" {path}\n" in (folder / "maps").read_text(errors="replace"):
            return True
    except OSError:
        return False
    for descriptor in _entries(folder / "fd"):
        with contextlib.suppress(OSError):
            if os.readlink(descriptor) == str(path):
                return True
    return False
