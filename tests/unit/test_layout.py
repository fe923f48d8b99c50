"""Guards on the shape of the repo: what must not lie where, and what must not be written
anywhere.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def modules() -> list[Path]:
    return [path for path in tracked("*.py") if not GENERATED.search(path.name)]


def test_a_clean_interpreter_in_the_repo_root_imports_the_standard_operator_module() -> None:
    code = (
        "import operator, os; assert operator.add(1, 2) == 3;"
        " print(os.path.dirname(operator.__file__))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != str(ROOT / "operator")


def test_the_operator_folder_holds_nothing_importable_of_its_own() -> None:
    assert [path.name for path in (ROOT / "operator").glob("*.py")] == []


def test_no_package_marker_lies_under_tests() -> None:
    assert tracked("tests/**/__init__.py") == []


def test_every_module_of_the_packages_says_what_it_owns() -> None:
    packages = [p for p in modules() if p.relative_to(ROOT).parts[0] in ("exo", "operator")]
    silent = [
        str(p.relative_to(ROOT))
        for p in packages
        if not p.read_text().lstrip().startswith(('"""', 'r"""'))
    ]
    assert silent == []


def test_every_package_that_node_and_operator_depend_on_is_used() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    wanted = {
        re.split(r"[<>=!~\[]", one)[0] for extra in ("node", "operator") for one in extras[extra]
    }
    provided: dict[str, set[str]] = {}
    for module, names in packages_distributions().items():
        for name in names:
            provided.setdefault(_normal(name), set()).add(module)
    code = "\n".join(
        p.read_text() for p in modules() if p.relative_to(ROOT).parts[0] in ("exo", "operator")
    )
    imported = set(
        re.findall(
            r"""(?:^\s*(?:import|from) |import_module\(["'])([A-Za-z_]\w*)""", code, re.MULTILINE
        )
    )
    assert {name for name in wanted if not provided.get(_normal(name), set()) & imported} == set()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("an absolute machine path", r"(^|[^A-Za-z0-9_.$}])/(work|farm|root)/[a-z]"),
        (
            "a package-registry host",
            r"\b(pypi\.org|files\.pythonhosted\.org|proxy\.golang\.org|sum\.golang\.org)\b",
        ),
    ],
)
def test_no_file_names(what: str, pattern: str) -> None:
    found = []
    for path in tracked():
        if path == Path(__file__).resolve():
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}: {m.group()}"
            for m in re.finditer(pattern, text, re.MULTILINE)
        ]
    assert found == [], what


def test_the_architecture_page_has_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    houses = ("exo", "exo/inference", "operator/exo_operator")
    rooms = [
        f"{house}/{marker.parent.name}"
        for house in houses
        for marker in sorted((ROOT / house).glob("*/__init__.py"))
    ]
    re_exports = {"exo/orchestration"}
    assert [room for room in rooms if f"`{room}`" not in text and room not in re_exports] == []
