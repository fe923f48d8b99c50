"""The packages' source as data, for tests about words and shape: nothing of it is imported.

Paths are relative to the repository, as text: `exo/ring/ring.py`.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"exo": ROOT / "exo", "exo_operator": ROOT / "operator" / "exo_operator"}
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")
DOTTED = re.compile(r"`(exo(?:_operator)?(?:\.\w+)+)(?:\(\))?`")
CAMEL = re.compile(r"`([A-Z][a-z]+(?:[A-Z]\w*)?)(?:\(\))?`")
# CamelCase words that other projects define: Kubernetes, OpenAI, the standard library.
_FOREIGN = """
    Accept Any AttributeError Authorization Available BaseException Bearer CancelledError
    Certificate ConnectionError Control Data Degraded Deployment Draining Exception
    ExceptionGroup ExoCluster ExoNode Failed False Gather Gemm Healthy Job KeyError Lease
    Literal Mapping MatMulNBits MemoryError NetworkPolicy None OSError
    PersistentVolumeClaim Pod PodDisruptionBudget Progressing Protocol Ready Role
    RuntimeError Scheduled Secret Sequence Service ServiceMonitor Suspended
    ThreadPoolExecutor TimeoutError True TypeError Unknown ValueError
"""
FOREIGN = frozenset(_FOREIGN.split())
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class _String(ast.Constant):
    value: str


@dataclass(frozen=True, slots=True, eq=False)
class Module:
    path: str
    name: str
    text: str
    tree: ast.Module

    def where(self, node: ast.AST) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}"


@functools.cache
def modules() -> tuple[Module, ...]:
    """Every module of both packages, generated ones aside."""
    found = []
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            if GENERATED.search(path.name):
                continue
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            name = ".".join(part for part in parts if part != "__init__")
            text = path.read_text()
            found.append(Module(str(path.relative_to(ROOT)), name, text, ast.parse(text)))
    return tuple(found)


def definitions(module: Module) -> dict[str, Definition]:
    """The classes and functions of a module's top level by name."""
    return {node.name: node for node in module.tree.body if isinstance(node, Definition)}


def names(module: Module) -> set[str]:
    """All that a module's top level gives a name to, imports aside."""
    found = set(definitions(module))
    for node in module.tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def docstrings(module: Module) -> Iterator[tuple[str, str]]:
    """(where, text) of each docstring."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Module | Definition):
            text = ast.get_docstring(node, clean=True)
            if text:
                yield module.where(node), text


def comments(module: Module) -> Iterator[tuple[str, str]]:
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type == tokenize.COMMENT:
            yield f"{module.path}:{token.start[0]}", token.string


@functools.cache
def prose(module: Module) -> tuple[tuple[str, str], ...]:
    """Docstrings and comments."""
    return (*docstrings(module), *comments(module))


@functools.cache
def strings(module: Module) -> tuple[tuple[str, str], ...]:
    """(where, text) of each string in the code, `…` for what an f-string fills in."""
    return tuple(_strings(module))


def _strings(module: Module) -> Iterator[tuple[str, str]]:
    inner = {
        id(part)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(module.tree):
        if isinstance(node, ast.JoinedStr):
            yield module.where(node), "".join(_constant(part) for part in node.values)
        elif _is_string(node) and id(node) not in inner:
            yield module.where(node), node.value


def _is_string(node: ast.AST) -> TypeGuard[_String]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _constant(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else "…"


@functools.cache
def identifiers(module: Module) -> tuple[tuple[str, str], ...]:
    """(where, name) of everything that is given a name here, and of attributes."""
    return tuple(_identifiers(module))


def _identifiers(module: Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(module.tree):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield module.where(node), node.name
            case ast.arg():
                yield module.where(node), node.arg
            case ast.Name(ctx=ast.Store()):
                yield module.where(node), node.id
            case ast.Attribute():
                yield module.where(node), node.attr
            case ast.alias(asname=str(name)):
                yield module.where(node), name
            case _:
                pass


def words(identifier: str) -> list[str]:
    """`KvCacheSize`, `kv_cache_size` -> kv, cache, size."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", identifier)
    return [part.lower() for part in parts]


@functools.cache
def by_name() -> dict[str, Module]:
    return {module.name: module for module in modules()}


@functools.cache
def class_names() -> frozenset[str]:
    """Everything that some module defines, messages of the wire among it."""
    wire = (ROOT / "exo/networking/grpc/wire/exo.proto").read_text()
    defined = {name for module in modules() for name in names(module)}
    return frozenset(defined | set(re.findall(r"\b(?:message|rpc|service) (\w+)", wire)))


def is_known(name: str) -> bool:
    """Whether a CamelCase name is defined here, or is one of others that we use."""
    return name in class_names() or name in FOREIGN


def resolves(dotted: str) -> bool:
    """Whether it is a module, or a name in one, or an attribute of a class in one."""
    parts = dotted.split(".")
    if parts[-1] == "proto":  # a file
        return True
    for length in range(len(parts), 0, -1):
        module = by_name().get(".".join(parts[:length]))
        if module is not None:
            rest = parts[length:]
            return not rest or rest[0] in names(module) | _exported(module)
    return False


def _exported(module: Module) -> set[str]:
    """What a package's `__init__` hands on."""
    return set(re.findall(r"^    \"(\w+)\",$", module.text, re.MULTILINE))
