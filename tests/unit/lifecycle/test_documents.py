"""The lifecycle pages are true: their Python runs, their diagram matches the table, the examples
print what they promise.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from exo.lifecycle import TRANSITIONS
from exo.lifecycle.diagram import LABELS, diagram, main, renew

ROOT = Path(__file__).parents[3]
PAGES = ("docs/lifecycle.md", "docs/conversion-guide.md")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# A part of what each program prints: the point it makes.
EXAMPLES = {
    "hello_resource.py": ["it says: hello", "healthy: True", "greeter 'greeter-1' is closed"],
    "group.py": [
        "up   engine",
        "down discovery",
        "failed: port 50051 is taken",
        "cycle of dependencies: a -> b -> a",
    ],
    "health.py": [
        "started False, ready False because {'disk-1': 'uninitialized'}",
        "'draining': 'the node is leaving'",
    ],
    "recovery.py": [
        "recoveries: 1",
        "the answer after 3 tries",
        "refused by the breaker",
        "engine runs on numpy",
    ],
    "conversion.py": ["before: tasks left after stop: 1", "after:  tasks left after stop: 0"],
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("page", PAGES)
async def test_the_python_of_a_page_runs(page: str):
    text = (ROOT / page).read_text()
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) >= 5
    module = types.ModuleType("page")
    namespace: dict[str, Any] = vars(module)
    for block in blocks:
        line = text[: block.start()].count("\n") + 1
        source = "\n" * line + block.group(1)
        code = compile(source, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        outcome = eval(code, namespace)
        if inspect.iscoroutine(outcome):
            await outcome


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_makes_its_point(name: str):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = ROOT / "examples" / "lifecycle" / name
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    for part in EXAMPLES[name]:
        assert part in done.stdout


def test_no_example_is_forgotten():
    assert {path.name for path in (ROOT / "examples" / "lifecycle").glob("*.py")} == set(EXAMPLES)


def test_the_diagram_in_the_page_is_fresh():
    assert main(["--check", str(ROOT / "docs" / "lifecycle.md")]) == 0


def test_the_diagram_has_every_move_of_the_table_and_no_other():
    moves = {(old, new) for old, news in TRANSITIONS.items() for new in news}
    assert set(LABELS) == moves
    assert diagram().count(" --> ") == len(moves) + 1


def test_a_stale_page_is_reported_and_renewed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "page.md"
    page.write_text(
        renew((ROOT / "docs" / "lifecycle.md").read_text()).replace(
            "READY --> CLOSING", "READY --> OPEN"
        )
    )
    assert main(["--check", str(page)]) == 1
    assert "stale" in capsys.readouterr().err
    assert main([str(page)]) == 0
    assert main(["--check", str(page)]) == 0
    with pytest.raises(ValueError, match="marks"):
        renew("no marks")
