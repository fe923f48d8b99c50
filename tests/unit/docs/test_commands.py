"""Commands that the documents show can be typed: targets, subcommands, flags, values, alerts."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import typer
import yaml
from source_code import ROOT

from exo.cli import app

PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/operations.md", "docs/ring.md")
CODE = re.compile(r"```console\n(.*?)```|`([^`\n]+)`", re.DOTALL)
FLAG = re.compile(r"(?<!\S)--[a-z][a-z-]+")


@cache
def code(page: str) -> tuple[str, ...]:
    """The lines of a page's console blocks, without comments, and what is in backticks."""
    lines: list[str] = []
    for block, span in CODE.findall((ROOT / page).read_text()):
        text = (block or span).replace("\\\n", " ")
        lines += [re.sub(r"\s#.*", "", line) for line in text.splitlines()]
    return tuple(lines)


@cache
def commands() -> dict[str, set[str]]:
    """Every subcommand of `exo` with its flags."""
    group: Any = typer.main.get_command(app)
    flags = {
        name: {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        for name, command in group.commands.items()
    }
    top = {option for each in group.params for option in each.opts}
    return {name: own | {"--help"} for name, own in {**flags, "": top}.items()}


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {name for line in code(page) for name in re.findall(r"\bmake (\w+)", line)}
    assert used - targets == set()


@pytest.mark.parametrize("page", PAGES)
def test_exo_knows_the_subcommands_and_flags(page: str) -> None:
    wrong = []
    for line in code(page):
        for name, rest in re.findall(r"(?:^|[\s/])exo ([a-z]+)?((?: [^|;&]*)?)", line):
            if name not in commands():
                wrong.append(line)
            else:
                wrong += [line for flag in FLAG.findall(rest) if flag not in commands()[name]]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_modules_and_programs_that_are_run_exist(page: str) -> None:
    wrong = []
    for line in code(page):
        for path in re.findall(r"(?<![\w/])((?:benchmarks|hack|tests)/[\w/.-]+\.py)", line):
            wrong += [path] if not (ROOT / path).is_file() else []
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_a_flag_alone_is_one_of_a_node(page: str) -> None:
    """`--drain-seconds` in the text is a setting of `exo serve`."""
    alone = {line for line in code(page) if re.fullmatch(r"--[a-z-]+", line)}
    other = {"--hypothesis-profile"}
    assert alone - commands()["serve"] - other == set()


def values() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "charts/exo-operator/values.yaml").read_text())
    return loaded


def test_the_table_of_values_is_complete_and_true() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    table = page.partition("### Values")[2].partition("###")[0]
    named: set[str] = set()
    for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE):
        first = ""
        for name in re.findall(r"`([^`]+)`", row):
            first = first if name.startswith(".") else name
            named.add(first.rpartition(".")[0] + name if name.startswith(".") else name)
    for name in named:
        found: Any = values()
        for part in name.split("."):
            assert part in found, name
            found = found[part]
    assert {name.split(".")[0] for name in named} == set(values())


def test_values_that_commands_set_exist() -> None:
    for line in code("docs/operations.md"):
        for name in re.findall(r"--set ([\w.]+)=", line):
            found: Any = values()
            for part in name.split("."):
                assert part in found, name
                found = found[part]


def test_the_table_of_alerts_is_complete() -> None:
    chart = (ROOT / "charts/exo-operator/templates/monitoring.yaml").read_text()
    page = (ROOT / "docs/operations.md").read_text()
    for alert in re.findall(r"- alert: (\w+)", chart):
        assert f"| `{alert}` |" in page
