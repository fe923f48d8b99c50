"""Usable memory and cores come from the cgroup where it is the tighter bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from exo.topology.device_capabilities import (
    available_memory_mib,
    device_capabilities,
    usable_memory_mib,
)


@pytest.fixture
def machine(tmp_path: Path):
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (cgroup / "pods" / "one").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:        8388608 kB\nMemFree: 1 kB\n")
    (proc / "self" / "cgroup").write_text("0::/pods/one\n")
    return proc, cgroup


def test_without_a_limit_it_is_the_host_memory(machine):
    proc, cgroup = machine
    (cgroup / "memory.max").write_text("max\n")
    found = device_capabilities(proc=proc, cgroup=cgroup)
    assert (found.memory_mib, found.host_memory_mib, found.cgroup_limit_mib) == (8192, 8192, None)


def test_the_tightest_limit_on_the_way_up_counts(machine):
    proc, cgroup = machine
    (cgroup / "pods" / "one" / "memory.max").write_text("max\n")
    (cgroup / "pods" / "memory.max").write_text(str(512 * 1024 * 1024))
    assert device_capabilities(proc=proc, cgroup=cgroup).memory_mib == 512


def test_a_version_one_limit_counts_and_its_no_limit_number_does_not(machine):
    proc, cgroup = machine
    (cgroup / "memory").mkdir()
    (cgroup / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712")
    assert device_capabilities(proc=proc, cgroup=cgroup).cgroup_limit_mib is None
    (cgroup / "memory" / "memory.limit_in_bytes").write_text(str(256 * 1024 * 1024))
    assert device_capabilities(proc=proc, cgroup=cgroup).memory_mib == 256


def test_the_cap_only_lowers(machine):
    proc, cgroup = machine
    assert device_capabilities(100, proc=proc, cgroup=cgroup).memory_mib == 100
    assert device_capabilities(10**6, proc=proc, cgroup=cgroup).memory_mib == 8192
    with pytest.raises(ValueError, match="memory: -1 MiB"):
        usable_memory_mib(100, None, -1)


def test_a_cpu_quota_bounds_the_cores(machine):
    proc, cgroup = machine
    (cgroup / "pods" / "one" / "cpu.max").write_text("50000 100000\n")
    assert device_capabilities(proc=proc, cgroup=cgroup).cores == 1


def test_this_machine_has_memory_and_cores():
    found = device_capabilities()
    assert found.memory_mib > 0
    assert found.cores >= 1


def test_what_the_machine_has_available_is_read_and_without_a_word_of_it_what_the_system_counts(
    tmp_path: Path,
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable:    2097152 kB\n")
    assert available_memory_mib(tmp_path) == 2048
    assert available_memory_mib(tmp_path / "none") > 0
