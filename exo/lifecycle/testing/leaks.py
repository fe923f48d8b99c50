"""What a process holds: tasks, open files and sockets, threads. For comparing before and after. For
tests.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FDS: Final = Path("/proc/self/fd")
# Threads of the event loop's own default executor stay, by design.
_POOL_PREFIXES: Final = ("asyncio_",)
# Random numbers, the null device and what kernels hand out for event queues belong to libraries,
# not to resources.
_IGNORED: Final = ("anon_inode:", "/dev/", "/proc/", "/sys/")


@dataclass(frozen=True, slots=True)
class Holdings:
    """Tasks and threads by identity, open files by path, sockets and pipes by number."""

    tasks: frozenset[asyncio.Task[object]]
    threads: frozenset[threading.Thread]
    files: Counter[str]

    @classmethod
    def now(cls) -> Holdings:
        tasks = frozenset(task for task in asyncio.all_tasks() if not task.done())
        threads = frozenset(
            t for t in threading.enumerate() if not t.name.startswith(_POOL_PREFIXES)
        )
        return cls(tasks, threads, _open_files())

    def gained_since(self, before: Holdings) -> list[str]:
        """What is held now and was not before, in words."""
        gained = [f"task {task.get_name()!r} still runs" for task in self.tasks - before.tasks]
        gained += [f"thread {thread.name!r} still runs" for thread in self.threads - before.threads]
        gained += [
            f"{name} left open ({number} more)"
            for name, number in (self.files - before.files).items()
        ]
        return sorted(gained)


async def gained_since(before: Holdings, patience: float) -> list[str]:
    """What is still held after up to `patience` seconds: closing a socket takes the event loop a
    few turns.
    """
    deadline = time.monotonic() + patience
    collected = False
    while True:
        gained = Holdings.now().gained_since(before)
        if not gained:
            return []
        if time.monotonic() >= deadline:
            if collected:
                return gained
            # What only the collector closes is late, but not leaked: it must not depend on when it
            # runs.
            gc.collect()
            collected = True
            deadline = time.monotonic() + 0.5  # a thread of its own may have to close it
        await asyncio.sleep(0.005)


def _open_files() -> Counter[str]:
    """Open files by path, other descriptors by kind; empty where the system has no /proc."""
    found: Counter[str] = Counter()
    if not _FDS.is_dir():
        return found
    for name in os.listdir(_FDS):
        try:
            target = os.readlink(_FDS / name)
        except OSError:
            continue
        if target.startswith(_IGNORED):
            continue
        kind = target.split(":", 1)[0]
        found[kind if kind in ("socket", "pipe") else target] += 1
    return found
