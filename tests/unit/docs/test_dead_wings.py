"""What nothing in production uses is removed, together with its test; the exceptions say why.

A use is a name or an attribute in the code of `exo`, `operator` or the benchmarks: by name alone,
so a dead function that shares its name with a living one is not found. Re-exports do not count.
"""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache

import pytest
import source_code
from source_code import ROOT, Definition, Module

# Who keeps it -> what. `module.name` or `module.Class.method`.
CONTRACT = "the public contract of lifecycle and error handling: relied on from outside"
SEAM = "the constructor data and method names of the public classes: relied on from outside"
ALLOWED = {
    "exo.lifecycle.testing.conformance.check_resource": CONTRACT,
    "exo.inference.engines.inference_engine.InferenceEngine.infer_prompt": SEAM,
    "exo.inference.engines.inference_engine.InferenceEngine.infer_tensor": SEAM,
    "exo.networking.peer_handle.PeerHandle.disconnect": SEAM,
    "exo.networking.peer_handle.PeerHandle.health_check": SEAM,
    "exo.node.node.Node.process_prompt": SEAM,
    "exo.utils.error_handling.with_fallbacks": CONTRACT,
}
# Decorators that leave a function something to be called; others register it somewhere.
PLAIN = {
    "property", "classmethod", "staticmethod", "abstractmethod", "override", "final", "overload",
    "cache", "lru_cache", "cached_property", "contextmanager", "asynccontextmanager", "dataclass",
    "runtime_checkable",
}  # fmt: skip


@cache
def uses() -> Counter[str]:
    """How often a name is used in production code, over all modules."""
    trees = [module.tree for module in source_code.modules()]
    for folder in ("benchmarks", "hack"):
        trees += [ast.parse(path.read_text()) for path in (ROOT / folder).rglob("*.py")]
    counted: Counter[str] = Counter()
    for tree in trees:
        for node in ast.walk(tree):
            match node:
                case ast.Name(ctx=ast.Load()):
                    counted[node.id] += 1
                case ast.Attribute():
                    counted[node.attr] += 1
                case ast.keyword(arg=str(name)):
                    counted[name] += 1
                case ast.alias(name=name, asname=str(other)) if other != name:
                    counted[name] += 1  # used under another name
                case _:
                    pass
    return counted


def is_registered(node: Definition) -> bool:
    """Whether a decorator hands it to a framework, which then calls it."""
    return any(name not in PLAIN for name in map(_decorator, node.decorator_list))


def _decorator(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def public(module: Module) -> dict[str, Definition]:
    """Public classes, functions and methods by their full name."""
    found: dict[str, Definition] = {}
    for name, node in source_code.definitions(module).items():
        if name.startswith("_"):
            continue
        found[f"{module.name}.{name}"] = node
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(inner, Definition) and not inner.name.startswith("_"):
                found[f"{module.name}.{name}.{inner.name}"] = inner
    return found


@cache
def unused() -> frozenset[str]:
    return frozenset(
        full
        for module in source_code.modules()
        for full, node in public(module).items()
        if not uses()[node.name] and not is_registered(node)
    )


def test_everything_public_has_a_caller_in_production() -> None:
    dead = sorted(unused() - set(ALLOWED))
    assert not dead, "\n".join(dead)


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_an_exception_is_still_needed(name: str) -> None:
    assert name in unused(), f"{name} is used, or gone: take it off the list"
