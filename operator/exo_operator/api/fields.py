"""What the models of the custom resources are built from: their base class and special field types.

Knows how pydantic and structural schemas fit together, and nothing about exo.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """Base of every model: camelCase on the wire, frozen, and lenient about unknown fields."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True
    )


def cel(*rules: tuple[str, str]) -> dict[str, Any]:
    """Extra schema: CEL rules, each with the message the API server gives when it fails."""
    return {
        "x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules]
    }


def timestamp(moment: datetime) -> str:
    """RFC 3339 with seconds, as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Timestamp = Annotated[
    datetime,
    PlainSerializer(timestamp, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]

Quantity = Annotated[
    str | int | float,
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "maxLength": 24,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
        }
        | cel(
            (
                "type(self) == int ? int(self) > 0 : isQuantity(string(self)) && "
                "quantity(string(self)).isGreaterThan(quantity('0'))",
                "must be a quantity above zero, like 500m or 2Gi",
            )
        )
    ),
]

# A part of a pod that Kubernetes itself checks when the pod is created.
Unchecked = Annotated[
    dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]
