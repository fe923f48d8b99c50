"""Paths that programs outside this repository import: they stay, whatever moves behind them."""

from __future__ import annotations

import importlib

import pytest

# old path -> where its names are defined now.
REEXPORTS = {
    "exo.orchestration.node": ("exo.node.node", ("Node",)),
    "exo.inference.inference_engine": (
        "exo.inference.engines.inference_engine",
        ("InferenceEngine",),
    ),
}
STAY = {
    "exo.networking.discovery": ("Discovery",),
    "exo.networking.server": ("Server",),
    "exo.networking.udp.udp_discovery": ("UDPDiscovery",),
    "exo.utils.health_check": ("HealthMonitor",),
    "exo.utils.error_handling": ("retrying", "CircuitBreaker", "classify", "with_fallbacks"),
    "exo.lifecycle": (
        "TRANSITIONS",
        "AsyncResource",
        "IllegalTransition",
        "ReentrantCall",
        "ResourceClosed",
        "ResourceError",
        "ResourceGroup",
        "ResourceInitializationError",
        "ResourceState",
        "ResourceStatistics",
        "ResourceTimeout",
        "ResourceUnavailable",
        "StateChange",
        "TaskHandle",
        "TaskManager",
        "TaskPriority",
        "live_resources",
    ),
    # The modules that the contract of the lifecycle names.
    "exo.lifecycle.states": ("TRANSITIONS", "ResourceState", "StateChange"),
    "exo.lifecycle.resource": ("AsyncResource",),
    "exo.lifecycle.errors": ("ResourceError", "ResourceClosed", "ResourceTimeout"),
    "exo.lifecycle.tasks": ("TaskHandle", "TaskManager", "TaskPriority"),
    "exo.lifecycle.group": ("ResourceGroup",),
    "exo.lifecycle.registry": ("live_resources",),
    "exo.lifecycle.testing": ("check_resource",),
}


@pytest.mark.parametrize("old", REEXPORTS)
def test_an_old_path_gives_the_very_same_classes(old: str) -> None:
    new, names = REEXPORTS[old]
    for name in names:
        assert getattr(importlib.import_module(old), name) is getattr(
            importlib.import_module(new), name
        )


@pytest.mark.parametrize("path", STAY)
def test_a_path_that_is_relied_on_has_its_public_names(path: str) -> None:
    module = importlib.import_module(path)
    assert [name for name in STAY[path] if not hasattr(module, name)] == []
