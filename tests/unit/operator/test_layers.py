"""Who may import what inside the operator: planners stay pure, libraries stay at the edge.

The floors themselves are a contract of import-linter, in `.importlinter`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[3] / "operator" / "exo_operator"
KOPF = {"controller.watches", "settings", "main"}
CLIENT = {"kube.client", "kube.leader"}
# Rooms that decide and perform no I/O, and what in them is an exception.
PURE_ROOMS = {"api", "kube", "exonode", "exocluster"}
IMPURE = CLIENT | {"exonode.node_client"}
MAX_LINES = 350
MAX_MODULES = 12


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the operator by its dotted name below the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] != "__init__":
            yield ".".join(parts), path


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
    """The modules of the operator that import a library."""
    return {
        module
        for module, path in modules()
        if any(name == library or name.startswith(f"{library}.") for name in imports(path))
    }


def is_pure(module: str) -> bool:
    return module.split(".")[0] in PURE_ROOMS and module not in IMPURE


def test_only_the_edge_knows_kopf_and_the_client() -> None:
    assert importers("kopf") == KOPF
    assert importers("kubernetes") == CLIENT


def test_the_planners_are_pure() -> None:
    for library in ("asyncio", "aiohttp", "kopf", "kubernetes", "random"):
        assert {module for module in importers(library) if is_pure(module)} == set(), library
    for impure in IMPURE:
        known_to = importers(f"exo_operator.{impure}")
        assert {module for module in known_to if is_pure(module)} == set(), impure


def test_of_exo_only_the_contract_is_known() -> None:
    for module, path in modules():
        assert {name for name in imports(path) if name.split(".")[0] == "exo"} <= {
            "exo",
            "exo.contract",
        }, module


def test_modules_and_rooms_stay_small() -> None:
    sizes = {module: len(path.read_text().splitlines()) for module, path in modules()}
    assert {module for module, lines in sizes.items() if lines > MAX_LINES} == set()
    for room in [PACKAGE, *(path for path in PACKAGE.iterdir() if path.is_dir())]:
        names = [path for path in room.glob("*.py") if path.name != "__init__.py"]
        assert len(names) <= MAX_MODULES, room.name
