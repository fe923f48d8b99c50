"""What docstrings and comments name exists: files, modules, attributes, classes."""

from __future__ import annotations

import re
from functools import cache

import source_code
from source_code import ROOT

FILE = re.compile(r"(?<![\w*{}/.])(?:[\w-]+/)*[\w-]+\.py\b")


@cache
def paths() -> frozenset[str]:
    folders = ("exo", "operator", "tests", "hack", "benchmarks", "examples")
    return frozenset(
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    )


def test_every_file_that_is_named_exists() -> None:
    missing = [
        f"{where} {name}"
        for module in source_code.modules()
        for where, text in source_code.prose(module)
        for name in FILE.findall(text)
        if not any(path == name or path.endswith(f"/{name}") for path in paths())
    ]
    assert not missing, "\n".join(missing)


def test_every_dotted_name_is_a_module_or_something_in_one() -> None:
    missing = [
        f"{where} {name}"
        for module in source_code.modules()
        for where, text in source_code.prose(module)
        for name in source_code.DOTTED.findall(text)
        if not source_code.resolves(name)
    ]
    assert not missing, "\n".join(missing)


def test_every_class_that_a_module_docstring_names_exists() -> None:
    missing = [
        f"{where} {name}"
        for module in source_code.modules()
        for where, text in source_code.docstrings(module)
        if where.endswith(":1")
        for name in source_code.CAMEL.findall(text)
        if not source_code.is_known(name)
    ]
    assert not missing, "\n".join(missing)
