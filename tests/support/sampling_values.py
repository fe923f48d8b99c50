"""Values for each sampling parameter, derived from its rule, so that no test has a list of them."""

from __future__ import annotations

from typing import Any

from exo.inference.sampling.params import RULES, SamplingParams

NEUTRAL = SamplingParams()
# Parameters that are no numbers, by name: their values cannot be derived from limits.
SHAPED: dict[str, Any] = {"logit_bias": {3: -50.0}, "json_schema": {}}


def values(name: str) -> list[Any]:
    """Values that the rule of `name` allows, other than its default: near and far, on both sides.
    There is at least one.
    """
    if name in SHAPED:
        return [SHAPED[name]]
    rule, neutral = RULES[name], getattr(NEUTRAL, name)
    base = neutral or 0  # None stands for off
    tried = [base / 2, base + 0.5, base + 1, base + 2, base + 50, base - 0.5, base - 50]
    if not isinstance(neutral, float):
        tried = [int(value) for value in tried]
    allowed = [value for value in tried if rule.least <= value <= rule.most]
    found = [value for value in dict.fromkeys(allowed) if value != neutral]
    assert found, f"the rule of {name} leaves only its default; name a value in SHAPED"
    return found
