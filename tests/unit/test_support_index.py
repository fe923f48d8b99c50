"""Guard: tests/support/README.md lists every module there, and nothing that is not there."""

from __future__ import annotations

import importlib
import operator
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
INDEX = (SUPPORT / "README.md").read_text()
MODULES = {path.stem for path in SUPPORT.rglob("*.py")}
# `module.Name` or `module.Name.method`; files and calls of the library look different.
NAMES = sorted(
    name for name in re.findall(r"`(\w+(?:\.\w+)+)`", INDEX) if name.split(".")[0] in MODULES
)


def test_every_module_is_listed_and_every_listed_module_exists():
    listed = re.findall(r"^\| `(\w+)` \|", INDEX, re.MULTILINE)
    assert sorted(listed) == sorted(MODULES)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_index_exists(name: str):
    module, _, attribute = name.partition(".")
    operator.attrgetter(attribute)(importlib.import_module(module))


def test_every_file_of_the_index_exists():
    files = re.findall(r"`(tests/[\w/.]+)`", INDEX)
    assert files
    assert [name for name in files if not (ROOT / name).exists()] == []
