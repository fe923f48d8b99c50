"""Answers that must be JSON: whatever the logits want, what comes out fits the schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from exo.inference.checkpoints.catalog import resolve_model
from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.engines.dummy import byte_tokenizer
from exo.inference.errors import InvalidRequest
from exo.inference.sampling import constraints
from exo.inference.sampling.constraints import JsonConstraint, check_schema
from exo.inference.sampling.params import SamplingParams
from exo.inference.sampling.sampling import sample
from exo.inference.text.load import load_tokenizer
from exo.inference.text.tokenizer import Tokenizer

needs_library = pytest.mark.skipif(
    not constraints.is_available(), reason="llguidance is not installed"
)
BYTES = byte_tokenizer()
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    with open_checkpoint(resolve_model("smollm2-135m")) as checkpoint:
        return load_tokenizer(checkpoint)


def answer(
    tokenizer: Tokenizer, schema: dict[str, Any], vocab: int, seed: int, replay_at: int = -1
) -> tuple[str, bool]:
    """Draw from random logits under the constraint; at `replay_at` go on with a new constraint, as
    a new stage does.
    """
    rng = np.random.default_rng(seed)
    constraint = JsonConstraint(tokenizer, schema, [2], vocab)
    params = SamplingParams(seed=seed, temperature=1.5)
    out: list[int] = []
    for position in range(300):
        if position == replay_at:
            constraint = JsonConstraint(tokenizer, schema, [2], vocab)
            constraint.accept(*out)
        logits = rng.standard_normal(vocab).astype(np.float32) * 4
        token = sample(logits, params, out, 0, position, constraint.allowed())[0]
        if token == 2:
            return tokenizer.decode(out), True
        out.append(token)
        constraint.accept(token)
    return tokenizer.decode(out), constraint.is_complete()


@needs_library
@pytest.mark.parametrize("seed", range(5))
def test_noise_becomes_json_of_the_schema(seed: int, smollm2: Tokenizer) -> None:
    for tokenizer, vocab in ((BYTES, 259), (smollm2, 49152)):
        text, whole = answer(tokenizer, SCHEMA, vocab, seed)
        assert whole
        jsonschema.validate(json.loads(text), SCHEMA)


@needs_library
def test_an_answer_replayed_in_the_middle_is_the_same() -> None:
    want = answer(BYTES, SCHEMA, 259, 7)
    assert all(answer(BYTES, SCHEMA, 259, 7, replay_at=k) == want for k in (1, 5, 17))


@needs_library
def test_the_empty_schema_is_any_object(smollm2: Tokenizer) -> None:
    constraint = JsonConstraint(smollm2, {}, [2], 49152)
    constraint.accept(*smollm2.encode('{"a": [1, {"b": null}]'))
    assert not constraint.is_complete()
    assert not constraint.allowed()[2]
    constraint.accept(*smollm2.encode("}"))
    assert constraint.is_complete()
    assert constraint.allowed()[2]
    constraint.accept(2, 2, 5)  # the end, and what a caller that ignores it adds
    assert constraint.is_complete()
    assert np.flatnonzero(constraint.allowed()).tolist() == [2]


@needs_library
def test_no_control_token_but_the_end_is_ever_allowed(smollm2: Tokenizer) -> None:
    allowed = JsonConstraint(smollm2, {}, [2], 49152).allowed()
    assert not allowed[sorted(smollm2.control.values())].any()
    with pytest.raises(ValueError, match="does not fit"):
        JsonConstraint(smollm2, {}, [2], 49152).accept(*smollm2.encode("hello"))


@needs_library
@pytest.mark.parametrize(
    "schema", [{"type": "nonsense"}, {"type": 5}, {"$ref": "#/nowhere"}, {"pattern": "("}]
)
def test_a_schema_that_cannot_be_used_is_a_refusal_of_the_request(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="the JSON schema cannot be used") as error:
        check_schema(
            BYTES,
            schema if "type" in schema or "$ref" in schema else {"type": "string"} | schema,
            [2],
            259,
        )
    assert error.value.field == "json_schema"


@needs_library
def test_a_schema_beyond_all_reason_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at most"):
        check_schema(BYTES, {"enum": ["x" * 1000] * 300}, [2], 259)


def test_without_the_library_the_request_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constraints, "is_available", lambda: False)
    with pytest.raises(InvalidRequest, match="llguidance, which is not installed"):
        check_schema(BYTES, {}, [2], 259)


@needs_library
def test_a_model_without_a_tokenizer_or_an_end_is_refused() -> None:
    for tokenizer, ends in ((None, [2]), (BYTES, [])):
        with pytest.raises(InvalidRequest, match="no tokenizer to constrain"):
            check_schema(tokenizer, {}, ends, 259)
