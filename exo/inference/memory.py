"""How much memory this process may use: the container's limit where there is one, else the machine's."""

from __future__ import annotations

from pathlib import Path
from typing import Final

CGROUP_V2: Final = Path("/sys/fs/cgroup/memory.max")
CGROUP_V1: Final = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
# Where neither can be read (no Linux): assume a small machine.
FALLBACK: Final = 4 << 30
SMALLEST_KV: Final = 64 << 20


def memory_limit() -> int:
    """Bytes: the smaller of the cgroup's limit and the machine's memory."""
    machine = _field("/proc/meminfo", "MemTotal:") or FALLBACK
    for path in (CGROUP_V2, CGROUP_V1):
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():  # "max" is no limit
            return min(machine, int(text))
    return machine


def resident_bytes() -> int:
    """What this process holds now; 0 where it cannot be told."""
    return _field("/proc/self/status", "VmRSS:")


def default_kv_budget() -> int:
    """Half of what is left after the weights: the rest is for activations, buffers and the interpreter."""
    return max(SMALLEST_KV, (memory_limit() - resident_bytes()) // 2)


def _field(path: str, name: str) -> int:
    """A "Name:   123 kB" line of a proc file, in bytes."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(name)), 0)
