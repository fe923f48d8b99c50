"""Giving memory back: mappings are found by file, and forgotten pages are read again as they
were.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from exo.inference.onnx.memory_trimming import (
    code_mappings,
    forget_code,
    forget_mapped_pages,
    mappings,
    trim_heap,
)

MAPS = """\
55d0c0a00000-55d0c0a21000 rw-p 00000000 00:00 0                          [heap]
7f1000000000-7f1000003000 r--s 00000000 08:01 42                         {path}
7f1000010000-7f1000011000 rw-p 00003000 08:01 42                         {path}
7f1000020000-7f1000021000 r--p 00000000 08:01 43                         {path}.other
7f1000030000-7f1000031000 rw-p 00000000 00:00 0
"""


def test_only_mappings_of_the_files_asked_for_are_found(tmp_path: Path) -> None:
    path = tmp_path / "with space.bin"
    path.touch()
    found = mappings(MAPS.format(path=path), [path])
    assert found == [(0x7F1000000000, 0x3000), (0x7F1000010000, 0x1000)]
    assert mappings(MAPS.format(path=path), []) == []


def test_forgotten_pages_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"weights" * 4096)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as area:
        assert area[:7] == b"weights"
        forget_mapped_pages([path])
        assert area[7:14] == b"weights"
    trim_heap()


def test_code_is_what_is_executable_private_and_of_a_file() -> None:
    maps = """\
7f2000000000-7f2000001000 r--p 00000000 08:01 50                         /usr/lib/libm.so.6
7f2000001000-7f2000005000 r-xp 00001000 08:01 50                         /usr/lib/libm.so.6
7f2000005000-7f2000006000 rw-p 00005000 08:01 50                         /usr/lib/libm.so.6
7ffc00000000-7ffc00002000 r-xp 00000000 00:00 0                          [vdso]
7f3000000000-7f3000001000 r-xp 00000000 00:00 0
"""
    assert code_mappings(maps) == [(0x7F2000001000, 0x4000)]


def test_forgotten_code_runs_on() -> None:
    forget_code()
    assert sum(range(1000)) == 499500
