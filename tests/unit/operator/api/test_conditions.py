"""Conditions and reasons: each is explained, used, and in the reference."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from exo_operator.api import conditions, reference
from exo_operator.api.conditions import (
    ClusterCondition,
    CommonReason,
    Documented,
    NodeCondition,
    NodeReason,
    Verdict,
)
from exo_operator.api.fields import timestamp
from exo_operator.api.status import Condition, ExoNodeStatus, read_status

from ..builders import NOW

REPOSITORY = Path(__file__).parents[4]
PACKAGE = REPOSITORY / "operator" / "exo_operator"
SETS = [words for _, _, words in reference.SECTIONS]


def used_in_the_source() -> set[tuple[str, str]]:
    """Every `Class.MEMBER` that a module other than the definitions names."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found.add((node.value.id, node.attr))
    return found


def test_the_reference_is_generated_from_the_definitions() -> None:
    for path, content in reference.files().items():
        assert (REPOSITORY / path).read_text() == content, "run `make generate`"


def test_the_reference_has_every_set_of_words() -> None:
    defined = {
        value
        for value in vars(conditions).values()
        if isinstance(value, type) and issubclass(value, Documented) and value is not Documented
    }
    assert defined == set(SETS)


@pytest.mark.parametrize("words", SETS, ids=lambda words: words.__name__)
def test_every_word_is_explained_and_used(words: type[Documented]) -> None:
    used = used_in_the_source()
    for word in words:
        assert word.isalpha(), word
        assert word[0].isupper(), word
        assert word.doc.endswith("."), word
        assert (words.__name__, word.name) in used, word


def test_both_resources_call_ready_the_same() -> None:
    """Readers of any of the two, like the executor, rely on it."""
    assert NodeCondition.READY == ClusterCondition.READY


def test_a_reason_is_written_as_its_word() -> None:
    (made,) = conditions.conditions(
        {NodeCondition.READY: Verdict(False, CommonReason.REFUSED, "x" * 5000)}, [], 7, NOW
    )
    assert made.model_dump(by_alias=True, mode="json") == {
        "type": "Ready",
        "status": "False",
        "reason": "Refused",
        "message": "x" * conditions.MAX_MESSAGE,
        "observedGeneration": 7,
        "lastTransitionTime": timestamp(NOW),
    }


def test_unknown_is_a_status_of_its_own() -> None:
    (made,) = conditions.conditions(
        {NodeCondition.HEALTHY: Verdict(None, NodeReason.NOT_ASKED)}, [], 1, NOW
    )
    assert made.status == "Unknown"


def test_a_status_that_cannot_be_read_counts_as_none() -> None:
    assert read_status(ExoNodeStatus, {"conditions": "broken"}) == ExoNodeStatus()
    assert read_status(ExoNodeStatus, None) == ExoNodeStatus()


def test_a_status_goes_back_over_the_wire_as_it_came() -> None:
    wire = {
        "conditions": [
            Condition(
                type="Ready", status="True", reason="Ready", last_transition_time=NOW
            ).model_dump(by_alias=True, mode="json", exclude_unset=True)
        ],
        "podIP": "10.0.0.1",
        "memory": {"usedMiB": 7},
        "nextRetryTime": timestamp(NOW),
    }
    assert read_status(ExoNodeStatus, wire).to_wire() == wire
