from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from exo.node.settings import NodeSettings


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("node_id", {"node_id": "-n"}),
        ("node_id", {"node_id": "n" * 129}),
        ("model", {"model": ""}),
        ("cluster", {"cluster": ""}),
        ("grpc_port", {"grpc_port": 65536}),
        ("drain_seconds", {"drain_seconds": -1.0}),
        ("recovery_seconds", {"recovery_seconds": float("nan")}),
        ("stuck_seconds", {"stuck_seconds": 0.0}),
        ("memory_mib", {"memory_mib": -1}),
        ("context_length", {"context_length": 0}),
        ("max_requests", {"max_requests": 0}),
        ("pinned", {"pinned": (5, 2)}),
        ("discovery_config", {"discovery": "manual"}),
        ("discovery_name", {"discovery": "dns"}),
        ("tls_ca", {"tls_cert": Path("c"), "tls_key": Path("k")}),
        ("tls_check_identity", {"tls_check_identity": True}),
    ],
)
def test_a_wrong_setting_is_named(field: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: "):
        NodeSettings(**wrong)


def test_secrets_are_not_in_the_representation() -> None:
    text = repr(NodeSettings(secret=b"hidden-1", hub_token="hidden-2"))
    assert "hidden" not in text


def test_settings_are_values() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        NodeSettings().model = "x"  # type: ignore[misc]
