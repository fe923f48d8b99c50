"""`SamplingParams` <-> JSON text, checked field by field: a peer's parameters are a stranger's
input.

The fields are those of the record: a new sampling parameter is added there and nowhere here. Its
type and its rule say how it is checked. Between releases: a parameter that this node does not know
is ignored, with a line in the log, and one that is missing has its default. So nodes of two
releases can serve one ring during an upgrade; the parameter has its effect once the last stage,
which samples, knows it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from typing import Any, Final, get_type_hints

from exo.inference.sampling.params import RULES, SamplingParams
from exo.networking.errors import BadMessage

log = logging.getLogger(__name__)
MAX_PARAMS_BYTES = 256 * 1024
MAX_BIASES = 65_536
MAX_REPORTED = 16
_FIELD = "params_json"
# Names of unknown parameters that the log has had already.
_reported: set[str] = set()


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
    _report_unknown(set(data) - set(_CHECKS))
    known = {name: value for name, value in data.items() if name in _CHECKS}
    try:
        return SamplingParams(**{name: _CHECKS[name](name, value) for name, value in known.items()})
    except BadMessage:
        raise
    except (ValueError, TypeError) as error:
        raise BadMessage(_FIELD, str(error)) from error


def _report_unknown(names: set[str]) -> None:
    """Once each, and not more than a few: a peer must not be able to fill the log."""
    for name in sorted({name[:64] for name in names} - _reported):
        if len(_reported) >= MAX_REPORTED:
            return
        _reported.add(name)
        log.warning("a peer sent the sampling parameter %r, which is ignored: not known here", name)


def _float(name: str, value: Any) -> float:
    least, most = RULES[name].least, RULES[name].most
    if not _is_number(value) or not least <= value <= most:
        raise BadMessage(f"{_FIELD}.{name}", f"must be a number from {least} to {most}")
    return float(value)


def _integer(name: str, value: Any) -> int:
    least, most = RULES[name].least, RULES[name].most
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadMessage(f"{_FIELD}.{name}", f"must be a whole number from {least} to {most}")
    return value


def _integer_or_none(name: str, value: Any) -> int | None:
    return None if value is None else _integer(name, value)


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadMessage(f"{_FIELD}.{name}", "must be true or false")
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


_CHECKS_BY_TYPE: Final[dict[Any, Callable[[str, Any], Any]]] = {
    float: _float,
    int: _integer,
    int | None: _integer_or_none,
    bool: _boolean,
    dict[int, float]: _biases,
    dict[str, Any] | None: _schema,
}


def _checks_of_fields() -> dict[str, Callable[[str, Any], Any]]:
    """Raises `TypeError` at import where a field of `SamplingParams` cannot travel."""
    hints = get_type_hints(SamplingParams)
    for each in dataclasses.fields(SamplingParams):
        if hints[each.name] not in _CHECKS_BY_TYPE:
            raise TypeError(f"SamplingParams.{each.name}: {hints[each.name]} cannot travel")
    return {
        each.name: _CHECKS_BY_TYPE[hints[each.name]] for each in dataclasses.fields(SamplingParams)
    }


_CHECKS: Final = _checks_of_fields()
