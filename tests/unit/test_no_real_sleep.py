"""Guard: no unit test waits for real time to pass.

A sleep is either too short on a busy machine or too long on every other. A test waits for an event,
polls the outside world with `eventually`, or asks for the virtual clock.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parent
# "path of the module::function": why real time has to pass there.
ALLOWED: dict[str, str] = {}


def sleeps(source: str) -> Iterator[tuple[int, str]]:
    """Line and innermost function of each call that sleeps in real time."""
    tree = ast.parse(source)
    if not any(map(_turns_clock_on, tree.body)):
        yield from _sleeps_in(tree, _sleep_names(tree), "module")


def _turns_clock_on(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and (
        ast.unparse(statement).startswith("pytestmark")
        and "virtual_clock" in ast.unparse(statement)
    )


def _sleep_names(tree: ast.Module) -> set[str]:
    """What `sleep` is called in this module."""
    names = {"asyncio.sleep", "time.sleep"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("asyncio", "time"):
            names |= {each.asname or each.name for each in node.names if each.name == "sleep"}
    return names


def _sleeps_in(node: ast.AST, names: set[str], function: str) -> Iterator[tuple[int, str]]:
    for child in ast.iter_child_nodes(node):
        name = function
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if _asks_for_clock(child):
                continue
            name = child.name
        elif isinstance(child, ast.Call) and _waits(child, names):
            yield child.lineno, function
        yield from _sleeps_in(child, names, name)


def _asks_for_clock(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    arguments = [] if isinstance(node, ast.ClassDef) else [each.arg for each in node.args.args]
    return "virtual_clock" in " ".join([*arguments, *map(ast.unparse, node.decorator_list)])


def _waits(call: ast.Call, names: set[str]) -> bool:
    """Whether it is a sleep of more than zero seconds."""
    return ast.unparse(call.func) in names and ast.unparse(call.args[0]) != "0"


def test_no_unit_test_sleeps_in_real_time():
    found = [
        f"{path.relative_to(UNIT)}:{line}"
        for path in sorted(UNIT.rglob("*.py"))
        for line, function in sleeps(path.read_text())
        if f"{path.relative_to(UNIT)}::{function}" not in ALLOWED
    ]
    assert not found, "wait for an event, or use the virtual clock:\n" + "\n".join(found)


def test_what_is_allowed_is_still_there():
    present = {
        f"{path.relative_to(UNIT)}::{function}"
        for path in UNIT.rglob("*.py")
        for _, function in sleeps(path.read_text())
    }
    assert set(ALLOWED) <= present


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("async def test():\n    await asyncio.sleep(0.1)", [2]),
        ("async def test():\n    await asyncio.sleep(seconds)", [2]),
        ("async def test():\n    await asyncio.sleep(0)", []),
        ("def test():\n    time.sleep(1)", [2]),
        ("from time import sleep as doze\ndoze(1)", [2]),
        ("async def test():\n    start(lambda: asyncio.sleep(60))", [2]),
        ("class Part:\n    async def run(self):\n        await asyncio.sleep(1)", [3]),
        ("async def test(virtual_clock):\n    await asyncio.sleep(0.1)", []),
        ("@pytest.mark.virtual_clock\nasync def test():\n    await asyncio.sleep(0.1)", []),
        ("pytestmark = pytest.mark.virtual_clock\nasync def f():\n    await asyncio.sleep(1)", []),
    ],
)
def test_the_guard_finds(source: str, lines: list[int]):
    assert [line for line, _ in sleeps(source)] == lines
