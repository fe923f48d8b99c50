"""Who may import what inside the operator: the planners stay pure, kopf and the API client stay at
the edge.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[3] / "operator" / "exo_operator"
KOPF = {"handlers", "settings", "main"}
CLIENT = {"cluster", "leader"}
PURE = {
    "names",
    "spec",
    "state",
    "observed",
    "plan",
    "plan_ring",
    "plan_secret",
    "render",
    "render_pod",
} | {"render_ring", "status", "status_ring"}


def imports(path: Path) -> set[str]:
    """The modules that a file imports, dotted."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def importers(library: str) -> set[str]:
    return {
        path.stem
        for path in PACKAGE.glob("*.py")
        if any(name == library or name.startswith(f"{library}.") for name in imports(path))
    }


def test_only_the_edge_knows_kopf_and_the_client() -> None:
    assert importers("kopf") == KOPF
    assert importers("kubernetes") == CLIENT


def test_the_planners_are_pure() -> None:
    for library in ("asyncio", "aiohttp", "kopf", "kubernetes", "random"):
        assert not importers(library) & PURE, library
    for path in PACKAGE.glob("*.py"):
        if path.stem in PURE:
            own = {name.split(".")[1] for name in imports(path) if name.startswith("exo_operator.")}
            assert own <= PURE, path.stem


def test_of_exo_only_the_contract_is_known() -> None:
    for path in PACKAGE.glob("*.py"):
        assert {name for name in imports(path) if name.split(".")[0] == "exo"} <= {
            "exo",
            "exo.contract",
        }, path.stem


def test_no_module_grows_beyond_four_hundred_lines() -> None:
    assert {
        path.stem for path in PACKAGE.glob("*.py") if len(path.read_text().splitlines()) > 400
    } == set()
