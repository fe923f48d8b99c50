"""Guards on what is written: sizes that a reader can hold, and tests that keep to public names."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")
ROOMS = ("exo", "operator", "tests", "benchmarks")
MOST_LINES = 350
MOST_MODULES = 12
# Their state is public in `statistics()` and in what they send; the rest is theirs to change.
PRIVATE = frozenset({"stage", "ring", "scheduler", "frontend", "entry"})


def modules(*rooms: str) -> list[Path]:
    """Tracked and new modules, without generated ones."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *rooms],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = [name for name in listed.split("\0") if name.endswith(".py")]
    return [path for name in names if (path := ROOT / name).is_file() and not _is_generated(path)]


def _is_generated(path: Path) -> bool:
    return GENERATED.search(path.name) is not None


def test_no_module_is_longer_than_350_lines():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in modules()}
    long = [f"{name}: {lines}" for name, lines in lengths.items() if lines > MOST_LINES]
    assert not long, "\n".join(long)


def test_no_folder_has_more_than_12_loose_modules():
    loose = [path for path in modules(*ROOMS) if path.name != "__init__.py"]
    folders = Counter(str(path.parent.relative_to(ROOT)) for path in loose)
    full = [f"{name}: {count}" for name, count in folders.items() if count > MOST_MODULES]
    assert not full, "\n".join(full)


def reach_ins(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each private attribute of an object that is called like one of PRIVATE.

    Hooks such as `_do_cleanup` may be replaced: a resource is made to be extended there.
    """
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or not re.match(r"_(?!_|do_)", node.attr):
            continue
        if _last_name(node.value) in PRIVATE:
            yield node.lineno, ast.unparse(node)


def _last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr.lstrip("_")
    return node.id if isinstance(node, ast.Name) else ""


def test_no_test_or_benchmark_holds_private_fields_of_what_runs_the_ring():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in modules("tests", "benchmarks")
        for line, text in reach_ins(path.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("stage._lanes", ["stage._lanes"]),
        ("bench.stage._lanes[0]", ["bench.stage._lanes"]),
        ("node.ring._held()", ["node.ring._held"]),
        (
            "bench.stage._scheduler._running",
            ["bench.stage._scheduler._running", "bench.stage._scheduler"],
        ),
        ("stage.statistics().lanes; self._stage; part._tasks; stage.__dict__", []),
        ("ring._do_cleanup = stuck", []),
    ],
)
def test_the_guard_finds(source: str, found: list[str]):
    assert [text for _, text in reach_ins(source)] == found
