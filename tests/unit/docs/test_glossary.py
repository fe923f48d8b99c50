"""The glossary is true, and what it gave up stays away: one meaning per word."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

import pytest
import source_code
from source_code import ROOT, Module

PAGE = ROOT / "docs" / "glossary.md"


class Retired(NamedTuple):
    """A word and its plural, where it must not occur, and what to write in its place."""

    words: tuple[str, ...]
    instead: str
    inside: tuple[str, ...] = ("exo/", "operator/")
    # Whether the word is plain English as well: then only names in the code are meant.
    names_only: bool = False


RETIRED = (
    Retired(("lane", "lanes"), "sequence, StageSequence"),
    Retired(("shelf", "shelves"), "engine pool"),
    Retired(("holder",), "ShardManager", inside=("exo/",)),
    Retired(("adoption",), "rollout"),
    Retired(
        ("links",), "outboxes", inside=("exo/node", "exo/ring", "exo/pipeline"), names_only=True
    ),
    Retired(("gate",), "middleware", inside=("exo/api",)),
    Retired(("meters",), "metrics"),
    Retired(("refusals",), "validation errors", inside=("exo/api",)),
    Retired(("acting",), "executor", inside=("operator/",), names_only=True),
    Retired(("unheard", "hinder"), "a plain word"),
)
# Whole phrases that must not occur in docstrings and comments.
PHRASES = (
    r"the seed's",
    r"\bissues? \d+",
    r"the issue (uses|names|asks|says)",
    r"\bnobody\b",
    r"\banew\b",
    r"\bfor ever\b",
    r"\bwhoever\b",
    r"of (its|their) own accord",
    r"\bbow(s|ed)? out\b",
    r"whether this is so",
)


def rows() -> list[tuple[str, str]]:
    """(term, where it is in the code) of every row."""
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] != "term" and not cells[0].startswith("-"):
            found.append((cells[0], cells[2]))
    return found


def test_every_term_is_there_once() -> None:
    counted = Counter(term for term, _ in rows())
    assert len(counted) > 40
    assert [term for term, count in counted.items() if count > 1] == []


@pytest.mark.parametrize(("term", "place"), [row for row in rows() if row[1]])
def test_a_term_names_code_that_exists(term: str, place: str) -> None:
    path, *names = re.findall(r"`([^`]+)`", place)
    assert (ROOT / path).is_file(), f"{term}: {path}"
    module = next(module for module in source_code.modules() if module.path == path)
    defined = source_code.names(module)
    for name in names:
        assert name in defined, f"{term}: {path} defines no {name}"


def inside(module: Module, retired: Retired) -> bool:
    return module.path.startswith(retired.inside)


@pytest.mark.parametrize("retired", RETIRED, ids=lambda retired: retired.words[0])
def test_a_retired_word_is_no_name_in_the_code(retired: Retired) -> None:
    found = {
        f"{where} {name}"
        for module in source_code.modules()
        if inside(module, retired)
        for where, name in [*source_code.identifiers(module), (module.path, module.name)]
        if set(retired.words) & set(source_code.words(name))
    }
    assert not found, "\n".join([f"write {retired.instead}:", *sorted(found)])


@pytest.mark.parametrize(
    "retired", [each for each in RETIRED if not each.names_only], ids=lambda each: each.words[0]
)
def test_a_retired_word_is_in_no_docstring_or_comment(retired: Retired) -> None:
    pattern = re.compile(rf"\b({'|'.join(retired.words)})\b", re.IGNORECASE)
    found = [
        where
        for module in source_code.modules()
        if inside(module, retired)
        for where, text in source_code.prose(module)
        if pattern.search(text)
    ]
    assert not found, "\n".join([f"write {retired.instead}:", *found])


@pytest.mark.parametrize("phrase", PHRASES)
def test_docstrings_and_comments_are_plain_english(phrase: str) -> None:
    pattern = re.compile(phrase, re.IGNORECASE)
    found = [
        where
        for module in source_code.modules()
        for where, text in source_code.prose(module)
        if pattern.search(" ".join(text.split()))
    ]
    assert not found, "\n".join(found)
