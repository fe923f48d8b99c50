"""The schemas of the CustomResourceDefinitions, their fields, and statuses held against them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
from exo_operator.api import crds
from exo_operator.api.fields import Model

Schema = dict[str, Any]


@cache
def schema_of(kind: str) -> Schema:
    """The schema of a kind, as the CRD has it."""
    found: dict[str, Schema] = {
        crd["spec"]["names"]["kind"]: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for crd in (crds.node_crd(), crds.cluster_crd())
    }
    return found[kind]


@cache
def _closed_status(kind: str) -> Schema:
    status = copy.deepcopy(schema_of(kind)["properties"]["status"])
    _close(status)
    return status


def _close(schema: Schema) -> None:
    """Refuse the unknown keys that the API server would drop silently."""
    properties = schema.get("properties")
    if properties is not None:
        schema["additionalProperties"] = False
        for child in properties.values():
            _close(child)
    if isinstance(schema.get("items"), dict):
        _close(schema["items"])


def check_status(kind: str, status: Schema) -> None:
    """Raises ValidationError unless the API server would keep the whole status."""
    jsonschema.validate(status, _closed_status(kind))


def leaves(schema: Schema, path: str = "") -> Iterator[str]:
    """The fields of a schema that hold a value, dotted."""
    for name, child in schema["properties"].items():
        below = f"{path}.{name}" if path else name
        if "properties" in child:
            yield from leaves(child, below)
        else:
            yield below


def put(spec: dict[str, Any], path: str, value: Any) -> None:
    """Set the field at a dotted path."""
    *parents, last = path.split(".")
    for parent in parents:
        spec = spec.setdefault(parent, {})
    spec[last] = value


def unset(model: Model, path: str = "") -> Iterator[str]:
    """The fields of a model that have no value, down to the last."""
    for name in type(model).model_fields:
        value, below = getattr(model, name), f"{path}.{name}" if path else name
        if value is None or value == []:
            yield below
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, Model):
                yield from unset(part, below)
