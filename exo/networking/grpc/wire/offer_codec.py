"""`NodeOffer` <-> the bytes of an `Offer`. The fields are those of the record, by name.

A new field of the heartbeat is added to `NodeOffer` and to the proto file, and nowhere else.
Between releases: a field that this node does not know is ignored (Protocol Buffers skip it), and
one that an older peer does not send has its default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, get_type_hints

from exo.networking.errors import BadMessage
from exo.networking.grpc.wire import exo_pb2 as pb
from exo.networking.grpc.wire.checks import identifier
from exo.topology.offer import NodeOffer, NodeState

_STATES: Final = {state.value: state for state in NodeState}


@dataclass(frozen=True, slots=True)
class _Kind:
    """How values of one type travel. decode: raises `BadMessage` naming the field."""

    encode: Callable[[Any], Any]
    decode: Callable[[str, Any], Any]


def _same(value: Any) -> Any:
    return value


def _as_it_is(_field: str, value: Any) -> Any:
    return value


def _printable(field: str, value: str) -> str:
    if not value.isprintable():
        raise BadMessage(f"offer.{field}", "has characters that cannot be printed")
    return value


def _state(field: str, value: str) -> NodeState:
    state = _STATES.get(value)
    if state is None:
        raise BadMessage(f"offer.{field}", f"{value[:32]!r} is none of {sorted(_STATES)}")
    return state


def _layer_range(value: tuple[int, int] | None) -> pb.LayerRange | None:
    return None if value is None else pb.LayerRange(start=value[0], end=value[1])


_KINDS: Final[dict[Any, _Kind]] = {
    int: _Kind(_same, _as_it_is),
    bool: _Kind(_same, _as_it_is),
    str: _Kind(_same, _printable),
    NodeState: _Kind(lambda state: state.value, _state),
    tuple[str, ...]: _Kind(_same, lambda _field, ids: tuple(ids)),
    tuple[int, int] | None: _Kind(_layer_range, lambda _field, layers: (layers.start, layers.end)),
}


def _kinds_of_fields() -> dict[str, _Kind]:
    """Raises `TypeError` at import where a field of `NodeOffer` cannot travel."""
    hints = get_type_hints(NodeOffer)
    sent = pb.Offer.DESCRIPTOR.fields_by_name
    for each in dataclasses.fields(NodeOffer):
        if hints[each.name] not in _KINDS or each.name not in sent:
            raise TypeError(f"NodeOffer.{each.name}: it is not in exo.proto, or of an unknown type")
    return {each.name: _KINDS[hints[each.name]] for each in dataclasses.fields(NodeOffer)}


_FIELDS: Final = _kinds_of_fields()
_OPTIONAL: Final = frozenset(
    name for name in _FIELDS if pb.Offer.DESCRIPTOR.fields_by_name[name].has_presence
)


def encode_offer(offer: NodeOffer) -> pb.Offer:
    return pb.Offer(**{name: kind.encode(getattr(offer, name)) for name, kind in _FIELDS.items()})


def decode_offer(data: pb.Offer) -> NodeOffer:
    identifier("offer.node_id", data.node_id)
    fields = {
        name: kind.decode(name, getattr(data, name))
        for name, kind in _FIELDS.items()
        if name not in _OPTIONAL or data.HasField(name)
    }
    try:
        return NodeOffer(**fields)
    except ValueError as error:
        field, _, problem = str(error).partition(": ")
        raise BadMessage(f"offer.{field}", problem) from error
