"""`JsonConstraint`: which tokens may come next so that an answer is JSON of a schema, by the
`llguidance` library.

A constraint follows one sequence: `allowed()` before a choice, `accept(token)` after it. It depends
only on the schema and the accepted tokens, so a replayed sequence meets the same constraint.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np

from exo.inference.arrays import Array
from exo.inference.errors import InvalidRequest
from exo.inference.text.tokenizer import Tokenizer

ANY_OBJECT: Final = {"type": "object"}
# Small models tend to repeat spaces without end; this is enough for indented JSON.
OPTIONS: Final = {"whitespace_pattern": r"[ \n]{0,12}"}
FIELD: Final = "json_schema"  # of `SamplingParams`; the API has its own name for it
MAX_SCHEMA: Final = 256 << 10


class _Words:
    """The vocabulary in the shape that llguidance asks for."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, eos_id: int) -> None:
        self.eos_token_id = eos_id
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i, skip_special=False) for i in range(vocab)]
        self.special_token_ids = sorted(i for i in tokenizer.control.values() if i < vocab)
        self._encode: Callable[[str], list[int]] = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


class JsonConstraint:
    """schema: a JSON schema; {} is any object. Raises `InvalidRequest` for one that cannot be
    compiled.
    eos_ids: the tokens that may end a complete answer; at least one.
    """

    def __init__(
        self, tokenizer: Tokenizer, schema: dict[str, Any], eos_ids: Collection[int], vocab: int
    ) -> None:
        words = _words(tokenizer, vocab, eos_ids)
        self._vocab = vocab
        self._ends = sorted(i for i in eos_ids if i < vocab)
        self._over = False
        self._matcher = _library().LLMatcher(words, _grammar(schema), log_level=0)
        if self._matcher.is_error():
            raise InvalidRequest(f"the JSON schema cannot be used: {self._fault()}", field=FIELD)

    def allowed(self) -> Array:
        """bool (vocab,): the tokens that may come next; with an end token among them once the
        answer is complete.
        """
        if self._over or self._matcher.is_stopped():
            only_ends = np.zeros(self._vocab, bool)
            only_ends[self._ends] = True
            return only_ends
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, count=self._vocab, bitorder="little").astype(bool)

    def accept(self, *tokens: int) -> None:
        """Go on with a chosen token. Raises `ValueError` for one that was not allowed; after the
        end nothing matters.
        """
        for token in tokens:
            self._over = self._over or (token in self._ends and self.is_complete())
            if not self._over and not self._matcher.consume_token(token):
                raise ValueError(f"token {token} does not fit the JSON schema: {self._fault()}")

    def is_complete(self) -> bool:
        """Whether the answer so far is JSON of the schema."""
        return bool(self._over or self._matcher.is_accepting())

    def _fault(self) -> str:
        lines: list[str] = self._matcher.get_error().splitlines()
        return lines[0] if lines else "unknown"


def is_available() -> bool:
    return importlib.util.find_spec("llguidance") is not None


def _library() -> Any:
    # Found by name: it may be missing, and only structured output needs it.
    return importlib.import_module("llguidance")


def check_schema(
    tokenizer: Tokenizer | None, schema: dict[str, Any], eos_ids: Collection[int], vocab: int
) -> None:
    """For the entry node: raises `InvalidRequest` where the schema, the model or this installation
    cannot do it.
    """
    if not is_available():
        raise InvalidRequest(
            "structured output needs the package llguidance, which is not installed", field=FIELD
        )
    if tokenizer is None or not any(i < vocab for i in eos_ids):
        raise InvalidRequest("this model has no tokenizer to constrain", field=FIELD)
    JsonConstraint(tokenizer, schema, eos_ids, vocab)


def _grammar(schema: dict[str, Any]) -> str:
    text = json.dumps(schema or ANY_OBJECT)
    if len(text) > MAX_SCHEMA:
        raise InvalidRequest(
            f"the JSON schema has {len(text)} characters; at most {MAX_SCHEMA}", field=FIELD
        )
    try:
        grammar: str = _library().LLMatcher.grammar_from_json_schema(text, overrides=OPTIONS)
    except ValueError as error:
        raise InvalidRequest(f"the JSON schema cannot be used: {error}", field=FIELD) from error
    return grammar


# Making one takes a tenth of a second, so there is one per tokenizer, as long as that exists.
_made: WeakKeyDictionary[Tokenizer, dict[tuple[int, Sequence[int]], Any]] = WeakKeyDictionary()


def _words(tokenizer: Tokenizer, vocab: int, eos_ids: Collection[int]) -> Any:
    ends = sorted(i for i in eos_ids if i < vocab)
    known = _made.setdefault(tokenizer, {})
    key = (vocab, tuple(ends))
    if key not in known:
        words = _library().TokenizerWrapper(_Words(tokenizer, vocab, ends[0]))
        known[key] = _library().LLTokenizer(words, n_vocab=vocab, eos_token=ends)
    return known[key]
