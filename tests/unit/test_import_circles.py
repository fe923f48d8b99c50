"""No module imports, directly or by others, a module that imports it.

Every import statement counts: those under `if TYPE_CHECKING` and those inside functions only hide a
circle from the interpreter, not from the reader. What Python imports implicitly (the packages that
a module lies in) does not count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import exo_operator
import pytest

import exo

ROOTS = tuple(Path(package.__file__).parent for package in (exo, exo_operator))
Graph = Mapping[str, frozenset[str]]


def modules(root: Path) -> dict[str, Path]:
    """Dotted name to file, of one package with all below it; generated code left out."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        if path.stem.endswith(("_pb2", "_pb2_grpc")):
            continue
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of ours that this one imports, wherever in the file."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, package)
            # `from package import module` names a module; `from module import thing` does not.
            inner = [f"{base}.{alias.name}" for alias in node.names]
            targets = [each if each in known else base for each in inner]
        else:
            continue
        yield from (each for each in targets if each in known and each != name)


def absolute(node: ast.ImportFrom, package: str) -> str:
    if node.level == 0:
        return node.module or ""
    parents = package.split(".")
    parents = parents[: len(parents) - node.level + 1]
    return ".".join([*parents, node.module] if node.module else parents)


def graph_of(known: Mapping[str, Path]) -> Graph:
    return {name: frozenset(imports(name, path, known)) for name, path in known.items()}


def circles(graph: Graph) -> list[list[str]]:
    """The groups of modules that can reach each other, of two or more (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = lowest[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], index[other])
        if lowest[name] == index[name]:
            cut = stack.index(name)
            group = stack[cut:]
            del stack[cut:]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return sorted(found)


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.name)
def test_no_module_imports_a_module_that_imports_it(root: Path):
    graph = graph_of(modules(root))
    assert sum(map(len, graph.values())) > len(graph), "the imports were not found"
    found = circles(graph)
    assert not found, "\n".join(" <-> ".join(group) for group in found)


def test_a_circle_is_found_wherever_the_import_stands(tmp_path: Path):
    package = tmp_path / "sample"
    package.mkdir()
    files = {
        "__init__": "",
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sample.b import B\n",
        "b": "def f():\n    from . import c\n",
        "c": "import sample.a\n",
        "d": "from sample import a, b\n",
    }
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    graph = graph_of(modules(package))
    assert graph["sample.d"] == {"sample.a", "sample.b"}
    assert circles(graph) == [["sample.a", "sample.b", "sample.c"]]
