"""What a process may still take: the least of its container's rest and of what the machine has."""

from __future__ import annotations

import pytest

from exo.inference.engines import memory
from exo.topology.device_capabilities import DeviceCapabilities


@pytest.mark.parametrize(
    ("limit", "resident", "available", "free"),
    [(None, 700, 5000, 5000), (1000, 700, 5000, 300), (1000, 700, 200, 200), (1000, 1200, 5000, 0)],
)
def test_free_memory_is_bounded_by_the_container_and_by_the_machine(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, resident: int, available: int, free: int
) -> None:
    device = DeviceCapabilities(
        memory_mib=limit or 8000, host_memory_mib=8000, cgroup_limit_mib=limit, cores=2
    )
    monkeypatch.setattr(memory, "device_capabilities", lambda: device)
    monkeypatch.setattr(memory, "resident_bytes", lambda: resident << 20)
    monkeypatch.setattr(memory, "available_memory_mib", lambda: available)
    assert memory.free_memory_mib() == free
