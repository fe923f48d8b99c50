"""A misspelt `EXO_…` variable is reported with the one that was meant. Those that Kubernetes or
other programs set are not.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import exo
from exo.cli.settings.environment import KNOWN, misspelt

LINK = "tcp://10.96.0.7:52415"


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("EXO_MODLE", "EXO_MODEL"),
        ("EXO_MODELS", "EXO_MODEL"),
        ("EXO_MODEL_DIR", "EXO_MODELS_DIR"),
        ("EXO_STUCK_SECOND", "EXO_STUCK_SECONDS"),
        ("EXO_DRAIN_SECONS", "EXO_DRAIN_SECONDS"),
        ("EXO_API_PROT", "EXO_API_PORT"),
        ("EXO_GPRC_PORT", "EXO_GRPC_PORT"),
        ("EXO_HSOT", "EXO_HOST"),
        ("EXO_NODEID", "EXO_NODE_ID"),
        ("EXO_LOGLEVEL", "EXO_LOG_LEVEL"),
        ("EXO_SECERT", "EXO_SECRET"),
        ("EXO_CONFG", "EXO_CONFIG"),
        ("EXO_DEBUGG", "EXO_DEBUG"),
        ("EXO_PORT_52415", None),
        # Whole names of ours, of other programs, and of our own scripts.
        ("EXO_MODEL", None),
        ("EXO_URL", None),
        ("EXO_HOME", None),
        ("EXO_NODE_IMAGE", None),
        ("EXO_CACHE", None),
        ("EXO_", None),
        ("MODLE", None),
        ("MY_EXO_MODLE", None),
    ],
)
def test_a_name_close_to_one_of_ours_is_reported_with_it(variable: str, meant: str | None) -> None:
    assert list(misspelt({variable: "1"})) == ([] if meant is None else [(variable, meant)])


@pytest.mark.parametrize(
    "name",
    [
        "exo",
        "exo-api",
        "exo-apis",
        "exo-model",
        "exo-modle",
        "exo-host",
        "exo-grpc",
        "exo-grcp",
        "exo-drain",
    ],
)
def test_links_to_a_service_are_not_reported(name: str) -> None:
    service = name.upper().replace("-", "_")
    links = {
        f"{service}_{rest}": "10.96.0.7"
        for rest in ("SERVICE_HOST", "PORT_52415_TCP_ADDR", "PORT_53_UDP_ADDR")
    }
    links |= {
        f"{service}_{rest}": "52415"
        for rest in ("SERVICE_PORT", "SERVICE_PORT_HTTP_API", "PORT_52415_TCP_PORT")
    }
    links |= {f"{service}_{rest}": LINK for rest in ("PORT", "PORT_52415_TCP")}
    links |= {f"{service}_PORT_52415_TCP_PROTO": "tcp"}
    assert list(misspelt(links)) == []


def test_a_port_set_by_hand_is_not_a_link() -> None:
    assert list(misspelt({"EXO_APIS_PORT": LINK})) == []
    assert list(misspelt({"EXO_APIS_PORT": "52415"})) == [("EXO_APIS_PORT", "EXO_API_PORT")]


def test_every_variable_that_the_program_reads_is_known() -> None:
    """An unknown one would be reported as misspelt if it is close to another."""
    text = "\n".join(path.read_text() for path in Path(exo.__file__).parent.rglob("*.py"))
    asked = {f"EXO_{name}" for name in re.findall(r'(?:environ\.get\(|environ\[)"EXO_(\w+)"', text)}
    asked |= {
        f"EXO_{name.replace('-', '_').upper()}"
        for name in re.findall(r"env_name\([\"']([a-z-]+)[\"']\)", text)
    }
    assert {"EXO_DEBUG", "EXO_URL", "EXO_CONFIG", "EXO_FAULT_DIR", "EXO_API_KEY"} <= asked
    assert asked <= KNOWN
