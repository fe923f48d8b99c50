"""Range and length checks that the codecs share. Each raises `BadMessage` naming the field."""

from __future__ import annotations

import math

from google.protobuf.message import DecodeError

from exo.networking.errors import BadMessage
from exo.networking.grpc.wire import exo_pb2 as pb
from exo.networking.messages import MAX_VALUES_BYTES

# A `Forward` of the largest size, and room for everything else in it (ids, position, shape).
MAX_MESSAGE_BYTES = MAX_VALUES_BYTES + 1024
MAX_ID_LENGTH = 128
MAX_EPOCH_LENGTH = 64
MAX_REASON_LENGTH = 1024
MAX_TOKEN = 2**31 - 1


def parse(data: bytes, limit: int = MAX_MESSAGE_BYTES) -> pb.Frame:
    if len(data) > limit:
        raise BadMessage("frame", f"{len(data)} bytes, at most {limit}")
    try:
        return pb.Frame.FromString(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise BadMessage("frame", f"not a frame: {error}") from error


def serialize(frame: pb.Frame) -> bytes:
    data = frame.SerializeToString()
    if len(data) > MAX_MESSAGE_BYTES:
        raise BadMessage(
            "frame", f"{len(data)} bytes, at most {MAX_MESSAGE_BYTES}: send it in parts"
        )
    return data


def identifier(field: str, value: str, limit: int = MAX_ID_LENGTH) -> str:
    if not 1 <= len(value) <= limit:
        raise BadMessage(field, f"{len(value)} characters, must be 1 to {limit}")
    if not value.isprintable():
        raise BadMessage(field, "has characters that cannot be printed")
    return value


def text(field: str, value: str, limit: int) -> str:
    if len(value) > limit:
        raise BadMessage(field, f"{len(value)} characters, at most {limit}")
    return value


def index(field: str, value: int, limit: int = MAX_TOKEN) -> int:
    if not 0 <= value <= limit:
        raise BadMessage(field, f"{value} must be 0 to {limit}")
    return value


def logprob(field: str, value: float) -> float:
    if math.isnan(value) or value > 1e-3:
        raise BadMessage(field, f"{value} is no log probability")
    return value
