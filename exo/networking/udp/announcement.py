"""`Announcement`: the datagram of UDP discovery, JSON of at most 1 KiB, parsed strictly. Pure.

It only says where to dial; the hello decides which nodes may join. With a shared secret the
datagram carries an HMAC, so that strangers cannot even make a node dial.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

from exo.networking.errors import BadMessage
from exo.topology.offer import MAX_ID_LENGTH

MAX_DATAGRAM_BYTES = 1024
VERSION = 1
_FIELDS = {"exo", "cluster", "node", "port", "incarnation", "mac"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    cluster: str
    node_id: str
    grpc_port: int
    incarnation: int


def encode_announcement(announcement: Announcement, secret: bytes) -> bytes:
    data: dict[str, Any] = {
        "exo": VERSION,
        "cluster": announcement.cluster,
        "node": announcement.node_id,
        "port": announcement.grpc_port,
        "incarnation": announcement.incarnation,
    }
    if secret:
        data["mac"] = _mac(announcement, secret)
    encoded = json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()
    if len(encoded) > MAX_DATAGRAM_BYTES:
        raise BadMessage("announcement", f"{len(encoded)} bytes, at most {MAX_DATAGRAM_BYTES}")
    return encoded


def decode_announcement(data: bytes, secret: bytes) -> Announcement:
    """Raises `BadMessage` naming the field."""
    if len(data) > MAX_DATAGRAM_BYTES:
        raise BadMessage("announcement", f"{len(data)} bytes, at most {MAX_DATAGRAM_BYTES}")
    try:
        fields = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise BadMessage("announcement", "is no JSON") from error
    if not isinstance(fields, dict) or not set(fields) <= _FIELDS:
        raise BadMessage("announcement", "is none of ours")
    if fields.get("exo") != VERSION:
        raise BadMessage("exo", f"must be {VERSION}")
    announcement = Announcement(
        cluster=_name(fields, "cluster"),
        node_id=_name(fields, "node"),
        grpc_port=_number(fields, "port", 1, 65535),
        incarnation=_number(fields, "incarnation", 0, 2**63 - 1),
    )
    mac = fields.get("mac", "")
    expected = _mac(announcement, secret) if secret else ""
    if not isinstance(mac, str) or not hmac.compare_digest(mac.encode(), expected.encode()):
        raise BadMessage("mac", "the shared secret differs")
    return announcement


def _mac(announcement: Announcement, secret: bytes) -> str:
    parts = [
        announcement.cluster,
        announcement.node_id,
        announcement.grpc_port,
        announcement.incarnation,
    ]
    return hmac.new(secret, json.dumps(["udp", *parts]).encode(), hashlib.sha256).hexdigest()


def _name(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if (
        not isinstance(value, str)
        or not 1 <= len(value) <= MAX_ID_LENGTH
        or not value.isprintable()
    ):
        raise BadMessage(name, f"must be text of 1 to {MAX_ID_LENGTH} characters")
    return value


def _number(fields: dict[str, Any], name: str, least: int, most: int) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadMessage(name, f"must be a whole number from {least} to {most}")
    return value
