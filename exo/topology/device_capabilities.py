"""What this machine lets the node use: memory and cores, as the container's cgroup bounds them.

Reads files under /proc and /sys only; the arithmetic is in the pure functions. Knows nothing of
models.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024
# cgroup v1 writes "no limit" as a number near 2**63.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCapabilities:
    """memory_mib: usable, the least of cgroup limit, host RAM and cap. cores: at least 1."""

    memory_mib: int
    host_memory_mib: int
    cgroup_limit_mib: int | None
    cores: int


def usable_memory_mib(host_mib: int, cgroup_limit_mib: int | None, cap_mib: int | None) -> int:
    """The least of the figures that are given. Raises `ValueError` for a negative cap."""
    if cap_mib is not None and cap_mib < 0:
        raise ValueError(f"memory: {cap_mib} MiB must be 0 or more")
    return min(each for each in (host_mib, cgroup_limit_mib, cap_mib) if each is not None)


def device_capabilities(
    memory_cap_mib: int | None = None,
    *,
    proc: Path = Path("/proc"),
    cgroup: Path = Path("/sys/fs/cgroup"),
) -> DeviceCapabilities:
    """What this machine has. Raises `ValueError` for a negative cap. A file that cannot be read
    counts as no limit.
    """
    host = _host_memory_mib(proc)
    limit = _cgroup_limit_mib(proc, cgroup)
    return DeviceCapabilities(
        memory_mib=usable_memory_mib(host, limit, memory_cap_mib),
        host_memory_mib=host,
        cgroup_limit_mib=limit,
        cores=_cores(proc, cgroup),
    )


def available_memory_mib(proc: Path = Path("/proc")) -> int:
    """What the machine could give without swapping, whatever the limits of its containers."""
    return (
        _meminfo_mib(proc, "MemAvailable:")
        or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") // MIB
    )


def _host_memory_mib(proc: Path) -> int:
    return (
        _meminfo_mib(proc, "MemTotal:")
        or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB
    )


def _meminfo_mib(proc: Path, field: str) -> int | None:
    for line in _read(proc / "meminfo").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) // 1024
    return None


def _cgroup_limit_mib(proc: Path, cgroup: Path) -> int | None:
    limits = [_number(_read(folder / "memory.max")) for folder in _cgroup_folders(proc, cgroup)]
    limits.append(_number(_read(cgroup / "memory" / "memory.limit_in_bytes")))
    known = [limit for limit in limits if limit is not None and limit < _NO_LIMIT]
    return min(known) // MIB if known else None


def _cores(proc: Path, cgroup: Path) -> int:
    cores = float(len(os.sched_getaffinity(0)))
    for folder in _cgroup_folders(proc, cgroup):
        quota = _read(folder / "cpu.max").split()
        if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit() and int(quota[1]) > 0:
            cores = min(cores, int(quota[0]) / int(quota[1]))
    return max(1, math.ceil(cores))


def _cgroup_folders(proc: Path, cgroup: Path) -> list[Path]:
    """The process's own cgroup v2 folder and all above it: each of them may set a limit."""
    own = next(
        (
            line[3:]
            for line in _read(proc / "self" / "cgroup").splitlines()
            if line.startswith("0::")
        ),
        "/",
    )
    parts = [part for part in own.split("/") if part not in ("", "..")]
    return [cgroup.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
