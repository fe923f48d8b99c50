"""The peers file: JSON text -> candidates, or an error that names line or field. Pure.

`{"peers": {"node-a": {"address": "127.0.0.1", "port": 50051}, ...}}`
"""

from __future__ import annotations

import json
from typing import Any

from exo.contract import GRPC_PORT
from exo.networking.peer_pool import Candidate

MAX_FILE_BYTES = 1024 * 1024
_KNOWN = {"address", "port"}


class BadPeersFile(ValueError):
    """The message begins with the line or the field that is wrong."""


def parse_peers(text: str) -> tuple[Candidate, ...]:
    """By node id. A missing port is the default one; any other deviation raises `BadPeersFile`."""
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise BadPeersFile(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError as error:
        raise BadPeersFile("nested too deeply") from error
    if not isinstance(data, dict) or not isinstance(data.get("peers"), dict):
        raise BadPeersFile(
            'peers: the file must be {"peers": {"NODE": {"address": ..., "port": ...}}}'
        )
    return tuple(_candidate(node_id, entry) for node_id, entry in sorted(data["peers"].items()))


def _candidate(node_id: str, entry: Any) -> Candidate:
    field = f"peers.{node_id[:128]}"
    if not 1 <= len(node_id) <= 128:
        raise BadPeersFile(f"{field}: a node id has 1 to 128 characters")
    if not isinstance(entry, dict):
        raise BadPeersFile(f'{field}: must be {{"address": ..., "port": ...}}')
    unknown = sorted(set(entry) - _KNOWN)
    if unknown:
        raise BadPeersFile(f"{field}.{unknown[0][:64]}: is not known; known are address and port")
    address, port = entry.get("address"), entry.get("port", GRPC_PORT)
    if not isinstance(address, str) or not 1 <= len(address) <= 253 or not address.isprintable():
        raise BadPeersFile(f"{field}.address: must be a host name or an IP address")
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise BadPeersFile(f"{field}.port: must be a whole number from 1 to 65535")
    return Candidate(node_id, address, port)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise BadPeersFile(f"{key[:128]}: is in the file twice")
        data[key] = value
    return data
