"""`SamplingParams`: how the next token is chosen. Pure data, checked once where it comes in; it
travels the ring as JSON.

Each field has a `Rule`: its limits and what it acts on. The fast paths of sampling ask by these
rules whether anything is set that they leave out, so a new parameter is a field here and its effect
in `sampling.penalised` (`Effect.SCORES`) or `sampling.distribution` (`Effect.CUT`).

The random choice is counter based: the token at position p of a sequence depends only on the
logits, these parameters, the history, the seed and p. A replayed sequence, on any node, chooses the
same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, Final


class Effect(Enum):
    """What a parameter acts on."""

    SCORES = "scores"  # what each token scores before one is drawn
    CUT = "cut"  # which tokens are left out of the draw
    DRAW = "draw"  # the draw itself
    CONSTRAINT = "constraint"  # what the whole answer must be
    REPORT = "report"  # what is reported with the token


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """least, most: limits of a number, both included. They are wide; an API sets its own within.
    is_slow: it needs every token in the order of the scores, or a library.
    """

    effect: Effect
    least: float = -math.inf
    most: float = math.inf
    is_slow: bool = False


def _rule(
    effect: Effect, least: float = -math.inf, most: float = math.inf, *, is_slow: bool = False
) -> dict[str, Rule]:
    """The metadata of a field."""
    return {"rule": Rule(effect=effect, least=least, most=most, is_slow=is_slow)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Names and order of application as in Hugging Face transformers; `temperature` 0 is greedy.

    Every default but the temperature's does nothing. top_k: 0 is off.
    logprobs: how many alternatives to report with each token; 0: the chosen one only, None: none.
    json_schema: the answer is constrained to this schema; {} is any JSON object.
    """

    temperature: float = field(default=1.0, metadata=_rule(Effect.DRAW, 0.0, 1e6))
    top_p: float = field(default=1.0, metadata=_rule(Effect.CUT, 0.0, 1.0))
    top_k: int = field(default=0, metadata=_rule(Effect.CUT, 0, 2**31 - 1))
    min_p: float = field(default=0.0, metadata=_rule(Effect.CUT, 0.0, 1.0))
    typical_p: float = field(default=1.0, metadata=_rule(Effect.CUT, 0.0, 1.0, is_slow=True))
    repetition_penalty: float = field(default=1.0, metadata=_rule(Effect.SCORES, 1e-6, 1e6))
    presence_penalty: float = field(default=0.0, metadata=_rule(Effect.SCORES, -1e6, 1e6))
    frequency_penalty: float = field(default=0.0, metadata=_rule(Effect.SCORES, -1e6, 1e6))
    logit_bias: dict[int, float] = field(default_factory=dict, metadata=_rule(Effect.SCORES))
    seed: int = field(default=0, metadata=_rule(Effect.DRAW, -(2**63), 2**64 - 1))
    logprobs: int | None = field(default=None, metadata=_rule(Effect.REPORT, 0, 1024))
    json_schema: dict[str, Any] | None = field(
        default=None, metadata=_rule(Effect.CONSTRAINT, is_slow=True)
    )

    @property
    def is_argmax(self) -> bool:
        """Whether the choice is the largest logit, whatever came before, and nothing else is asked
        for. What is left out of a draw does not matter then: the best token stays.
        """
        return self.temperature == 0 and not self._is_set(_BESIDE_ARGMAX)

    @property
    def cuts(self) -> bool:
        """Whether tokens are left out of the draw."""
        return self._is_set(_CUTS)

    @property
    def is_slow(self) -> bool:
        """Whether a choice takes much longer than a plain draw."""
        return self._is_set(_SLOW)

    def _is_set(self, among: tuple[tuple[str, Any], ...]) -> bool:
        return any(getattr(self, name) != neutral for name, neutral in among)


RULES: Final[Mapping[str, Rule]] = {
    each.name: each.metadata["rule"] for each in fields(SamplingParams)
}


def _fields(wanted: Callable[[Rule], bool]) -> tuple[tuple[str, Any], ...]:
    """Names of fields and the values that do nothing. Made once, as each token asks for them."""
    neutral = SamplingParams()
    return tuple((name, getattr(neutral, name)) for name, rule in RULES.items() if wanted(rule))


_CUTS: Final = _fields(lambda rule: rule.effect is Effect.CUT)
_SLOW: Final = _fields(lambda rule: rule.is_slow)
_BESIDE_ARGMAX: Final = _fields(lambda rule: rule.effect not in {Effect.CUT, Effect.DRAW})
