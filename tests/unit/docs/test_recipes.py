"""The twelve recipes of CONTRIBUTING.md name places that exist."""

from __future__ import annotations

import re

import pytest
from source_code import ROOT

SECTION = (ROOT / "CONTRIBUTING.md").read_text().partition("## Twelve recipes")[2]
RECIPES = dict(
    re.findall(r"^### \d+\. (.+?)\n(.*?)(?=^### |\Z)", SECTION, re.DOTALL | re.MULTILINE)
)
FILE = re.compile(r"(?:exo|operator|tests|docs)/[\w/.-]+\.\w+")
NAME = re.compile(r"_?[A-Za-z]\w*(?:\.\w+)?")
# What is in backticks and not in the file named before it.
OUTSIDE = {"ResourceDegraded", "PooledDiscovery", "UnsupportedModel", "ApiSettings"}


def test_there_are_twelve() -> None:
    assert len(RECIPES) == 12


@pytest.mark.parametrize("title", RECIPES)
def test_each_name_is_in_the_file_before_it(title: str) -> None:
    """`file.py`, then `name`: the file holds the name."""
    missing = []
    for item in re.split(r"\n(?=\d+\. |\n)", RECIPES[title]):
        file = ""
        for token in re.findall(r"`([^`]+)`", item):
            if FILE.fullmatch(token):
                file = token
                missing += [] if (ROOT / file).is_file() else [file]
            elif (
                file and NAME.fullmatch(token) and token not in OUTSIDE and (ROOT / file).is_file()
            ):
                text = (ROOT / file).read_text()
                last = token.rpartition(".")[2]
                missing += [] if re.search(rf"\b{last}\b", text) else [f"{file}: {token}"]
    assert missing == []
