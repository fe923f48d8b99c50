"""No module imports, directly or by others, a module that imports it.

Every import statement counts: those under `if TYPE_CHECKING` and those inside functions only hide a
circle from the interpreter, not from the reader. What Python imports implicitly (the packages that
a module lies in) does not count.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from house_numbers import PACKAGES, cycles, graph_of, read, upward

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_a_module_that_imports_it(package: str):
    graph = graph_of(read(ROOT / PACKAGES[package], package))
    assert sum(map(len, graph.values())) > len(graph), "the imports were not found"
    found = cycles(graph)
    assert not found, "\n".join(" <-> ".join(group) for group in found)


def test_a_circle_is_found_wherever_the_import_stands(tmp_path: Path):
    files = {
        "__init__": "",
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sample.b import B\n",
        "b": "def f():\n    from . import c\n",
        "c": "import sample.a\n",
        "d": "from sample import a, b\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    graph = graph_of(read(tmp_path, "sample"))
    assert graph["sample.d"] == {"sample.a", "sample.b"}
    assert cycles(graph) == [["sample.a", "sample.b", "sample.c"]]


def test_an_import_from_a_lower_layer_or_a_sibling_is_upward():
    graph = {"p.a": {"p.b"}, "p.b": {"p.d"}, "p.c": {"p.a.inner"}, "p.d": set[str]()}
    assert upward(graph, [["p.a"], ["p.b", "p.d"], ["p.c"]]) == ["p.b -> p.d", "p.c -> p.a.inner"]
