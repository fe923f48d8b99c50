"""`SamplingParams` <-> JSON text, checked field by field: a peer's parameters are a stranger's
input.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

from exo.inference.sampling.params import SamplingParams
from exo.networking.errors import BadMessage

MAX_PARAMS_BYTES = 256 * 1024
MAX_BIASES = 65_536
_FIELD = "params_json"
# Least and greatest value; generous, the API checks what its callers may ask for.
_FLOATS = {
    "temperature": (0.0, 1e6),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repetition_penalty": (1e-6, 1e6),
    "presence_penalty": (-1e6, 1e6),
    "frequency_penalty": (-1e6, 1e6),
}
_INTEGERS = {"top_k": (0, 2**31 - 1), "seed": (-(2**63), 2**64 - 1), "logprobs": (0, 1024)}


def encode_params(params: SamplingParams) -> str:
    """Only what differs from the defaults: most messages then carry a few bytes."""
    changed = {}
    for each in dataclasses.fields(params):
        value = getattr(params, each.name)
        default = each.default_factory() if callable(each.default_factory) else each.default
        if value != default:
            changed[each.name] = value
    return json.dumps(changed, separators=(",", ":"))


def decode_params(text: str) -> SamplingParams:
    if len(text) > MAX_PARAMS_BYTES:
        raise BadMessage(_FIELD, f"{len(text)} characters, at most {MAX_PARAMS_BYTES}")
    try:
        data = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise BadMessage(_FIELD, f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise BadMessage(_FIELD, "must be a JSON object")
    checks: dict[str, Callable[[str, Any], Any]] = {
        **dict.fromkeys(_FLOATS, _float),
        **dict.fromkeys(_INTEGERS, _integer),
        "logit_bias": _biases,
        "json_schema": _schema,
    }
    unknown = sorted(set(data) - set(checks))
    if unknown:
        raise BadMessage(f"{_FIELD}.{unknown[0][:64]}", "is not known here")
    try:
        return SamplingParams(**{name: checks[name](name, value) for name, value in data.items()})
    except BadMessage:
        raise
    except (ValueError, TypeError) as error:
        raise BadMessage(_FIELD, str(error)) from error


def _float(name: str, value: Any) -> float:
    least, most = _FLOATS[name]
    if not _is_number(value) or not least <= value <= most:
        raise BadMessage(f"{_FIELD}.{name}", f"must be a number from {least} to {most}")
    return float(value)


def _integer(name: str, value: Any) -> int | None:
    least, most = _INTEGERS[name]
    if value is None and name == "logprobs":
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadMessage(f"{_FIELD}.{name}", f"must be a whole number from {least} to {most}")
    return value


def _biases(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise BadMessage(f"{_FIELD}.{name}", f"must be an object of at most {MAX_BIASES} entries")
    biases = {}
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10):
            raise BadMessage(f"{_FIELD}.{name}", "its keys must be token ids")
        if not _is_number(bias) or not math.isfinite(bias):
            raise BadMessage(f"{_FIELD}.{name}", "its values must be numbers")
        biases[int(token)] = float(bias)
    return biases


def _schema(name: str, value: Any) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise BadMessage(f"{_FIELD}.{name}", "must be an object or null")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
