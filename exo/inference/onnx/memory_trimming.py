"""Keeping resident memory small: pages of mapped files, and memory that malloc keeps, go back to
the system.

Mapped pages are read from the file again when they are touched, so dropping them loses nothing.
Otherwise all of a checkpoint that was read once would count against the container's limit. Linux
only; elsewhere these functions do nothing.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

_MAPS = Path("/proc/self/maps")


@lru_cache(maxsize=1)
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc


def mappings(maps: str, files: Iterable[Path]) -> list[tuple[int, int]]:
    """(address, bytes) of every mapping of one of `files` in the text of /proc/self/maps."""
    wanted = {str(path.resolve()) for path in files}
    found: list[tuple[int, int]] = []
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] in wanted:
            start, end = (int(part, 16) for part in fields[0].split("-"))
            found.append((start, end - start))
    return found


def code_mappings(maps: str) -> list[tuple[int, int]]:
    """(address, bytes) of the program code of all libraries. Only r-x, which can never have been
    written to.
    """
    found: list[tuple[int, int]] = []
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1] == "r-xp" and fields[5].startswith("/"):
            start, end = (int(part, 16) for part in fields[0].split("-"))
            found.append((start, end - start))
    return found


def forget_mapped_pages(files: Iterable[Path]) -> None:
    """Drop the pages of files that are mapped read-only (or were never written to) from this
    process.
    """
    _forget(lambda maps: mappings(maps, files))


def forget_code() -> None:
    """Drop code that only the start needed; what is still used comes back page by page from the
    page cache.
    """
    _forget(code_mappings)


def _forget(choose: Callable[[str], list[tuple[int, int]]]) -> None:
    if sys.platform != "linux":
        return
    try:
        areas = choose(_MAPS.read_text())
    except OSError:
        return
    for address, size in areas:
        _libc().madvise(address, size, mmap.MADV_DONTNEED)


def trim_heap() -> None:
    """Give free memory inside malloc's heaps back; glibc only."""
    if sys.platform == "linux" and hasattr(_libc(), "malloc_trim"):
        _libc().malloc_trim(0)
