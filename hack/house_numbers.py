"""Print the numbers by which this code is compared over time: sizes, words, and who imports whom.

    .venv/bin/python hack/house_numbers.py [ROOT]    # ROOT: another checkout, a git worktree

Only package source counts, generated code does not. What each row means:

- module, function: lines, decorators and blank lines included; annotated: functions with a return
  annotation; public doc: functions and methods with a docstring, of those with a public name.
- comments: lines with a comment; docstrings: lines of docstrings; both of all lines.
- cycles: groups of modules that import each other, imports under TYPE_CHECKING and inside functions
  included. An import of a package's name from its `__init__` counts as one of the package.
- upward: imports against the layers of ROOT/.importlinter, of a layer's own sibling included.
"""

from __future__ import annotations

import ast
import configparser
import io
import re
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")
PACKAGES = {"exo": "exo", "exo_operator": "operator/exo_operator"}
RING = ("exo/ring/ring.py", "exo/orchestration/ring.py")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())

    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]


def read(folder: Path, package: str) -> dict[str, Module]:
    """Every module of a package by its dotted name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        if not GENERATED.search(path.name):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            name = ".".join(parts).removesuffix(".__init__")
            text = path.read_text()
            found[name] = Module(name, path, text, ast.parse(text))
    return found


# -- sizes and words


def spread(values: Iterable[int], middle: str) -> str:
    """Median, a high quantile and the largest, such as `6 / 22 / 59`."""
    ordered = sorted(values)
    high = ordered[int(len(ordered) * {"p90": 0.90, "p95": 0.95}[middle])]
    return f"{statistics.median(ordered):g} / {high} / {ordered[-1]}"


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def length(function: Function) -> int:
    first = min([function.lineno, *(each.lineno for each in function.decorator_list)])
    return (function.end_lineno or first) - first + 1


def comment_lines(module: Module) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(module.text).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)


def docstring_lines(module: Module) -> int:
    holders = (ast.Module, ast.ClassDef, *Function.__args__)
    documented = [
        node.body[0]
        for node in ast.walk(module.tree)
        if isinstance(node, holders) and ast.get_docstring(node) is not None
    ]
    return sum((each.end_lineno or each.lineno) - each.lineno + 1 for each in documented)


# -- who imports whom


def imports(module: Module, known: Iterable[str]) -> set[str]:
    """The modules of the same tree that it imports, wherever the statement stands."""
    known, found = set(known), set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module)
            # `from package import module` names a module; `from module import thing` does not.
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= (inner & known) or {base}
    return (found & known) - {module.name}


def _absolute(node: ast.ImportFrom, module: Module) -> str:
    if not node.level:
        return node.module or ""
    is_package = module.path.name == "__init__.py"
    parts = module.name.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, node.module] if node.module else parts)


def graph_of(modules: dict[str, Module]) -> dict[str, set[str]]:
    return {name: imports(module, modules) for name, module in modules.items()}


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other."""
    reach = {name: _reachable(name, graph) for name in graph}
    groups = {frozenset(n for n in reach[name] if name in reach[n]) for name in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    todo = [start]
    while todo:
        new = graph.get(todo.pop(), set()) - found
        found |= new
        todo += new
    return found


def layers(root: Path) -> list[list[list[str]]]:
    """Of each contract of type `layers`: from the top down, the packages of each layer."""
    config = configparser.ConfigParser()
    config.read(root / ".importlinter")
    return [
        [re.split(r"\s*[|:]\s*", line) for line in config[name]["layers"].split("\n") if line]
        for name in config.sections()
        if config[name].get("type") == "layers"
    ]


def upward(graph: dict[str, set[str]], contract: list[list[str]]) -> list[str]:
    floor = {package: height for height, line in enumerate(contract) for package in line}

    def at(module: str) -> tuple[str, int] | None:
        for package, height in floor.items():
            if module == package or module.startswith(package + "."):
                return package, height
        return None

    found = []
    for name, imported in graph.items():
        for other in imported:
            here, there = at(name), at(other)
            if here and there and here[0] != there[0] and there[1] <= here[1]:
                found.append(f"{name} -> {other}")
    return found


def late_parts(path: Path) -> int:
    """Lines that ask whether a private field of the object is None: parts that come late."""
    lines = path.read_text().splitlines()
    return sum(re.search(r"self\._\w+ is (not )?None", line) is not None for line in lines)


# -- the table


def rows(root: Path, package: str) -> dict[str, str]:
    modules = read(root / PACKAGES[package], package)
    every = list(modules.values())
    functions = [each for module in every for each in module.functions()]
    public = [each for each in functions if not each.name.startswith("_")]
    lines = sum(module.lines for module in every)

    def share(of: Callable[[Module], int]) -> str:
        return percent(sum(map(of, every)), lines)

    graph = graph_of(modules)
    loose = Counter(each.path.parent for each in every if each.path.name != "__init__.py")
    fullest = max(loose, key=lambda folder: loose[folder])
    against = [up for contract in layers(root) for up in upward(graph, contract)]
    circles = cycles(graph)
    return {
        "files": str(len(every)),
        "lines": str(lines),
        "module median / p90 / max": spread((each.lines for each in every), "p90"),
        "function median / p95 / max": spread(map(length, functions), "p95"),
        "annotated": percent(sum(each.returns is not None for each in functions), len(functions)),
        "public doc": percent(sum(map(_is_documented, public)), len(public)),
        "module doc": percent(sum(_is_documented(each.tree) for each in every), len(every)),
        "comments": share(comment_lines),
        "docstrings": share(docstring_lines),
        "over 100 columns": share(lambda m: sum(len(line) > 100 for line in m.text.splitlines())),
        "import cycles": "; ".join(map(", ".join, circles)) or "0",
        "upward imports": "; ".join(sorted(set(against))) or "0",
        "largest folder": f"{fullest.relative_to(root)}: {loose[fullest]}",
    }


def _is_documented(node: ast.Module | Function) -> bool:
    return ast.get_docstring(node) is not None


def main(root: Path) -> None:
    tables = {package: rows(root, package) for package in PACKAGES}
    names = next(iter(tables.values()))
    print("| | " + " | ".join(tables) + " |")
    print("|---" * (len(tables) + 1) + "|")
    for name in names:
        print(f"| {name} | " + " | ".join(table[name] for table in tables.values()) + " |")
    ring = next(root / name for name in RING if (root / name).exists())
    print(f"| late parts (`is None`) in {ring.relative_to(root)} | {late_parts(ring)} | - |")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve())
