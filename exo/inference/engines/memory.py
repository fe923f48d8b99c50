"""How much memory keys and values may take, within what the container or the machine gives this
process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from exo.topology.device_capabilities import MIB, available_memory_mib, device_capabilities

SMALLEST_KV: Final = 64 << 20


def resident_bytes() -> int:
    """What this process holds now; 0 where that is unknown."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:")), 0)


def default_kv_budget() -> int:
    """Half of what is left after the weights: the rest is for activations, buffers and the
    interpreter.
    """
    return max(SMALLEST_KV, (device_capabilities().memory_mib * MIB - resident_bytes()) // 2)


def free_memory_mib() -> int:
    """What this process may still take of its container's limit and of what the machine has
    available.
    """
    device = device_capabilities()
    free = available_memory_mib()
    if device.cgroup_limit_mib is not None:
        free = min(free, device.cgroup_limit_mib - resident_bytes() // MIB)
    return max(0, free)
