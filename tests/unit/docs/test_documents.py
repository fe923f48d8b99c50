"""The documents: what they name exists, what they quote is said, lines fit a terminal."""

from __future__ import annotations

import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import source_code
from source_code import ROOT

PHRASES = re.compile(
    r"\b(nobody|anew|for ever|whoever|of (its|their) own accord|the seed's|issues? \d+)\b",
    re.IGNORECASE,
)
# In text, in backticks: a file or folder of this repository.
PATH = re.compile(
    r"`((?:exo|operator|charts|tests|examples|hack|docs|crds|requirements|benchmarks)/[\w./{},-]+)`"
)
# Pages whose tables quote what a node says, under a heading that begins so.
QUOTING = re.compile(r"^\| .* says \|")


def pages() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return [ROOT / name for name in listed if not name.startswith("tests/golden/")]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> list[tuple[int, str]]:
    """Numbered lines that are neither code nor table nor only a link or a picture."""
    kept, fenced = [], False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.lstrip().startswith(("|", "![", "<")):
            kept.append((number, line))
    return kept


@pytest.mark.parametrize("page", pages(), ids=named)
def test_lines_fit_in_100_columns(page: Path) -> None:
    long = [number for number, line in prose(page) if len(line) > 100 and " " in line.strip()]
    assert long == []


@pytest.mark.parametrize("page", pages(), ids=named)
def test_a_page_is_plain_english(page: Path) -> None:
    text = "\n".join(line for _, line in prose(page))
    assert [match.group() for match in PHRASES.finditer(text)] == []


@pytest.mark.parametrize("page", pages(), ids=named)
def test_files_that_a_page_names_exist(page: Path) -> None:
    missing = []
    for name in PATH.findall(page.read_text()):
        stem, _, rest = name.partition("{")
        choices, _, tail = rest.partition("}")
        for choice in choices.split(",") if rest else [""]:
            path = f"{stem}{choice}{tail}".rstrip("/")
            if not (ROOT / path).exists() and "NAME" not in path:
                missing.append(path)
    assert missing == []


UNDERSTAND = ("architecture", "ring", "networking", "glossary", "lifecycle", "conversion-guide")


@pytest.mark.parametrize("name", UNDERSTAND)
def test_classes_and_modules_that_a_page_names_exist(name: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / f"docs/{name}.md").read_text(), flags=re.DOTALL)
    classes = [each for each in source_code.CAMEL.findall(text) if not source_code.is_known(each)]
    dotted = [each for each in source_code.DOTTED.findall(text) if not source_code.resolves(each)]
    assert classes + dotted == []


@pytest.mark.parametrize("page", pages(), ids=named)
def test_tests_that_a_page_names_exist(page: Path) -> None:
    found = re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", page.read_text())
    missing = [
        f"{path}::{name}" for path, name in found if f"def {name}(" not in (ROOT / path).read_text()
    ]
    assert missing == []


def quotes() -> list[tuple[str, str]]:
    """(page, quoted text) of the first column of tables that quote."""
    found = []
    for page in pages():
        inside = False
        for before, line in pairwise(["", *page.read_text().splitlines()]):
            inside = line.startswith("|") and (inside or bool(QUOTING.match(before)))
            if inside and not line.startswith("|-"):
                found += [
                    (named(page), text) for text in re.findall(r"`([^`]+)`", line.split("|")[1])
                ]
    return found


@pytest.mark.parametrize(("page", "text"), quotes())
def test_what_a_page_quotes_is_said_by_the_code(page: str, text: str) -> None:
    parts = [re.escape(part.strip()) for part in text.split("…")]
    pattern = re.compile(r".*?".join(part for part in parts if part))
    said = (string for module in source_code.modules() for _, string in source_code.strings(module))
    assert any(pattern.search(string) for string in said), f"{page} quotes {text!r}"


def test_the_conditions_and_reasons_in_the_troubleshooting_table_exist() -> None:
    table = (ROOT / "docs/operations.md").read_text().partition("## Troubleshooting")[2]
    known = (ROOT / "operator/exo_operator/api/conditions.py").read_text()
    of_kubernetes = {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "ErrImagePull",
        "ExoCluster",
        "ImagePullBackOff",
        "Unschedulable",
    }
    symptoms = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")]
    words = set(re.findall(r"`([A-Z]\w+)`", "".join(symptoms)))
    assert words
    assert {word for word in words if f'"{word}"' not in known} - of_kubernetes == set()


def test_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    folders = {"decisions", "pictures"}
    docs = [page for page in (ROOT / "docs").rglob("*.md") if page.parent.name not in folders]
    missing = [named(page) for page in docs if f"({named(page)})" not in text]
    assert missing == []
