"""Only the command line reads environment variables; all else is given its settings.

A module that reads the environment itself has settings that no flag can change and no test sees.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "exo", ROOT / "operator" / "exo_operator")
MAY_READ = ("exo/cli/", "operator/exo_operator/settings.py")
# Sets a variable for a library that reads it when it is imported, and reads none itself.
EXCEPTIONS = {"exo/inference/onnx/__init__.py": "os.environ.setdefault"}
NAMES = frozenset({"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"})


def uses(source: str) -> Iterator[str]:
    """Each use of the environment, as it is written: `os.environ.get`."""
    tree = ast.parse(source)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (f"from os import {name.name}" for name in node.names if name.name in NAMES)
        elif isinstance(node, ast.Attribute) and id(node) not in inner:
            text = ast.unparse(node)
            if text.startswith("os.") and text.split(".")[1] in NAMES:
                yield text


def test_only_the_command_line_reads_the_environment() -> None:
    found = {}
    for path in (path for package in PACKAGES for path in sorted(package.rglob("*.py"))):
        name = path.relative_to(ROOT).as_posix()
        used = [use for use in uses(path.read_text("utf-8")) if use != EXCEPTIONS.get(name)]
        if used and not name.startswith(MAY_READ):
            found[name] = used
    assert found == {}


def test_every_form_of_reading_is_seen() -> None:
    source = (
        "import os\nfrom os import environ\nos.environ['A']\nos.getenv('A')\nos.environ.get('A')\n"
        "f(os.environ)\nself.os.environ"
    )
    assert sorted(uses(source)) == [
        "from os import environ",
        "os.environ",
        "os.environ",
        "os.environ.get",
        "os.getenv",
    ]
