"""What docstrings and comments name exists: files, modules, attributes, classes."""

from __future__ import annotations

import re
from functools import cache

import source_code
from source_code import ROOT, Module

FILE = re.compile(r"(?<![\w*{}/.])(?:[\w-]+/)*[\w-]+\.py\b")
DOTTED = re.compile(r"`(exo(?:_operator)?(?:\.\w+)+)(?:\(\))?`")
CAMEL = re.compile(r"`([A-Z][a-z]+(?:[A-Z]\w*)?)(?:\(\))?`")
# CamelCase words that other projects define: Kubernetes, OpenAI, the standard library.
FOREIGN = {
    "Ready", "Healthy", "Draining", "Failed", "Scheduled", "Suspended", "Progressing", "Degraded",
    "Available", "Accept", "Authorization", "Bearer", "Certificate", "True", "False", "None",
    "Control", "Data", "Lease", "Pod", "Service", "Secret", "Deployment", "Job", "Role", "Unknown",
    "ValueError", "OSError", "Exception", "RuntimeError", "TimeoutError", "KeyError", "TypeError",
    "ConnectionError", "CancelledError", "ExceptionGroup", "BaseException", "MemoryError",
    "Any", "Literal", "Protocol", "Mapping", "Sequence", "ThreadPoolExecutor",
    "Gather", "Gemm", "MatMulNBits", "PersistentVolumeClaim",
    "NetworkPolicy", "PodDisruptionBudget", "ServiceMonitor",
}  # fmt: skip


@cache
def paths() -> frozenset[str]:
    folders = ("exo", "operator", "tests", "hack", "benchmarks", "examples")
    return frozenset(
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    )


@cache
def by_name() -> dict[str, Module]:
    return {module.name: module for module in source_code.modules()}


@cache
def class_names() -> frozenset[str]:
    """Everything that some module defines, messages of the wire among it."""
    wire = (ROOT / "exo/networking/grpc/wire/exo.proto").read_text()
    defined = {name for module in source_code.modules() for name in source_code.names(module)}
    return frozenset(defined | set(re.findall(r"\b(?:message|rpc|service) (\w+)", wire)))


def test_every_file_that_is_named_exists() -> None:
    missing = [
        f"{where} {name}"
        for module in source_code.modules()
        for where, text in source_code.prose(module)
        for name in FILE.findall(text)
        if not any(path == name or path.endswith(f"/{name}") for path in paths())
    ]
    assert not missing, "\n".join(missing)


def resolves(dotted: str) -> bool:
    """Whether it is a module, or a name in one, or an attribute of a class in one."""
    parts = dotted.split(".")
    if parts[-1] == "proto":  # a file
        return True
    for length in range(len(parts), 0, -1):
        module = by_name().get(".".join(parts[:length]))
        if module is not None:
            rest = parts[length:]
            return not rest or rest[0] in source_code.names(module) | exported(module)
    return False


def exported(module: Module) -> set[str]:
    """What a package's `__init__` hands on."""
    found = re.findall(r"^    \"(\w+)\",$", module.text, re.MULTILINE)
    return set(found)


def test_every_dotted_name_is_a_module_or_something_in_one() -> None:
    missing = [
        f"{where} {name}"
        for module in source_code.modules()
        for where, text in source_code.prose(module)
        for name in DOTTED.findall(text)
        if not resolves(name)
    ]
    assert not missing, "\n".join(missing)


def test_every_class_that_a_module_docstring_names_exists() -> None:
    missing = [
        f"{where} {name}"
        for module in source_code.modules()
        for where, text in source_code.docstrings(module)
        if where.endswith(":1")
        for name in CAMEL.findall(text)
        if name not in class_names() | FOREIGN
    ]
    assert not missing, "\n".join(missing)
