"""Ring messages <-> the bytes of a `Frame`. A message is checked completely before it is passed on.

`decode` raises `BadMessage` naming the field; `encode` raises it for a message that no peer would
take. Tensors travel as raw little-endian bytes. A decoded tensor is a read-only view of the
message, not a copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, assert_never

import numpy as np

from exo.networking.errors import BadMessage
from exo.networking.grpc.wire import exo_pb2 as pb
from exo.networking.grpc.wire.checks import (
    MAX_EPOCH_LENGTH,
    MAX_ID_LENGTH,
    MAX_REASON_LENGTH,
    MAX_TOKEN,
    identifier,
    index,
    logprob,
    parse,
    serialize,
    text,
)
from exo.networking.grpc.wire.params_codec import decode_params, encode_params
from exo.networking.messages import (
    MAX_VALUES_BYTES,
    Array,
    Close,
    Failed,
    Forward,
    Message,
    Open,
    Token,
)

MAX_TOKENS = 1 << 20
MAX_TOP_LOGPROBS = 256
# What is in one bundle is handled without a pause.
MAX_BUNDLE = 1024
# Field number and "length-delimited", as they begin these fields on the wire.
_FORWARD_TAG = bytes([pb.Frame.FORWARD_FIELD_NUMBER << 3 | 2])
_VALUES_TAG = bytes([pb.Forward.VALUES_FIELD_NUMBER << 3 | 2])
_DTYPES: dict[int, tuple[np.dtype[Any], int]] = {
    pb.Forward.FLOAT32: (np.dtype("<f4"), 2),
    pb.Forward.INT64: (np.dtype("<i8"), 1),
}

Parts = tuple[bytes | memoryview, ...]


def encode(message: Message) -> bytes:
    return b"".join(encode_parts(message))


def encode_parts(message: Message) -> Parts:
    """`encode` in parts that only have to be joined. The values of a `Forward` are one of them, and
    are not copied: they must not change before the parts are joined.
    """
    try:
        if isinstance(message, Forward):
            return _forward_parts(message)
        return (serialize(_to_frame(message)),)
    except BadMessage:
        raise
    # A number that does not fit its field, text that is no Unicode.
    except (ValueError, TypeError) as error:
        raise BadMessage(type(message).__name__, str(error)) from error


def _to_frame(message: Open | Token | Close | Failed) -> pb.Frame:
    match message:
        case Token():
            return pb.Frame(token=_encode_token(message))
        case Open():
            return pb.Frame(open=_encode_open(message))
        case Close():
            return pb.Frame(close=pb.Close(sequence_id=message.sequence_id, epoch=message.epoch))
        case Failed():
            return pb.Frame(
                failed=pb.Failed(
                    sequence_id=message.sequence_id,
                    epoch=message.epoch,
                    node=message.node,
                    reason=message.reason[:MAX_REASON_LENGTH],
                    retryable=message.retryable,
                )
            )
        case _:
            assert_never(message)


def decode(data: bytes) -> Message:
    return from_frame(parse(data))


def bundle(frames: list[bytes]) -> bytes:
    """Several encoded messages as one, so that a batch of sequences costs one write and one read
    and arrives together.
    """
    return frames[0] if len(frames) == 1 else serialize(pb.Frame(bundle=pb.Bundle(frames=frames)))


def decode_all(data: bytes) -> list[Message]:
    """The messages of a frame or of a bundle of them, in order."""
    frame = parse(data)
    if frame.WhichOneof("kind") != "bundle":
        return [from_frame(frame)]
    if not 1 <= len(frame.bundle.frames) <= MAX_BUNDLE:
        raise BadMessage("bundle", f"{len(frame.bundle.frames)} frames, must be 1 to {MAX_BUNDLE}")
    return [from_frame(parse(each)) for each in frame.bundle.frames]


def from_frame(frame: pb.Frame) -> Message:
    kind = frame.WhichOneof("kind")
    decoder = _DECODERS.get(kind or "")
    if decoder is None:
        raise BadMessage("kind", f"{kind or 'nothing'} is no ring message")
    return decoder(getattr(frame, kind or ""))


def _forward_parts(message: Forward) -> Parts:
    """A `Frame` put together by hand, so that the values are copied once and not by each layer of
    the library.
    """
    dtype, values = _checked(message.values)
    head = pb.Forward(
        sequence_id=message.sequence_id,
        epoch=message.epoch,
        position=message.position,
        dtype=dtype,
        shape=values.shape,
        sample=message.sample,
    ).SerializeToString()
    tail = _VALUES_TAG + _varint(values.nbytes)
    size = _varint(len(head) + len(tail) + values.nbytes)
    return (_FORWARD_TAG + size + head + tail, values.data.cast("B"))


def _checked(values: Array) -> tuple[Any, Array]:
    """The dtype on the wire, and the values as they lie there: C order, little endian."""
    if values.dtype == np.float32 and values.ndim == 2:
        dtype, raw = pb.Forward.FLOAT32, np.ascontiguousarray(values, "<f4")
    elif values.dtype == np.int64 and values.ndim == 1:
        dtype, raw = pb.Forward.INT64, np.ascontiguousarray(values, "<i8")
    else:
        raise BadMessage(
            "values",
            f"{values.dtype} {values.shape}: only float32 (tokens, hidden) and int64 (tokens,)"
            " travel",
        )
    if not raw.size:
        raise BadMessage("values", f"{values.shape}: nothing to send")
    if raw.nbytes > MAX_VALUES_BYTES:
        raise BadMessage(
            "values",
            f"{raw.nbytes} bytes, a message takes at most {MAX_VALUES_BYTES}: send it in parts",
        )
    return dtype, raw


def _varint(number: int) -> bytes:
    """Protocol Buffers' base 128 encoding."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _encode_token(message: Token) -> pb.Token:
    return pb.Token(
        sequence_id=message.sequence_id,
        epoch=message.epoch,
        position=message.position,
        token=message.token,
        logprob=message.logprob,
        top_logprobs=[
            pb.TopLogprob(token=token, logprob=value) for token, value in message.top_logprobs
        ],
    )


def _encode_open(message: Open) -> pb.Open:
    return pb.Open(
        sequence_id=message.sequence_id,
        epoch=message.epoch,
        entry=message.entry,
        tokens=message.tokens,
        prompt_length=message.prompt_length,
        params_json=encode_params(message.params),
        max_length=message.max_length,
        request_id=_label(message.request_id),
    )


def _label(request_id: str) -> str:
    """An id that a client may have chosen, as peers take it: bounded and printable. Otherwise a
    client could end the stream between two nodes with a line break.
    """
    return "".join(each if each.isprintable() else "?" for each in request_id[:MAX_ID_LENGTH])


def _decode_open(data: pb.Open) -> Open:
    if not 1 <= len(data.tokens) <= MAX_TOKENS:
        raise BadMessage("tokens", f"{len(data.tokens)} of them, must be 1 to {MAX_TOKENS}")
    tokens = tuple(data.tokens)
    index("tokens", max(tokens))
    return Open(
        **_head(data),
        entry=identifier("entry", data.entry),
        tokens=tokens,
        prompt_length=index("prompt_length", data.prompt_length, len(tokens)),
        params=decode_params(data.params_json),
        max_length=index("max_length", data.max_length),
        request_id=identifier("request_id", data.request_id) if data.request_id else "",
    )


def _decode_forward(data: pb.Forward) -> Forward:
    head = _head(data)
    values = _tensor(data)
    position = index("position", data.position, MAX_TOKEN - len(values))
    return Forward(**head, position=position, values=values, sample=data.sample)


def _tensor(data: pb.Forward) -> Array:
    known = _DTYPES.get(data.dtype)
    if known is None:
        raise BadMessage("dtype", f"{data.dtype} is none of {sorted(_DTYPES)}")
    dtype, dimensions = known
    shape = tuple(data.shape)
    if len(shape) != dimensions or min(shape) < 1:
        raise BadMessage("shape", f"{shape[:8]} must have {dimensions} dimensions, none empty")
    if math.prod(shape) * dtype.itemsize != len(data.values):
        raise BadMessage("values", f"{len(data.values)} bytes for shape {shape} of {dtype}")
    values = np.frombuffer(data.values, dtype).reshape(shape)
    if dimensions == 1 and (int(values.min()) < 0 or int(values.max()) > MAX_TOKEN):
        raise BadMessage("values", f"token ids must be 0 to {MAX_TOKEN}")
    return values


def _decode_token(data: pb.Token) -> Token:
    if len(data.top_logprobs) > MAX_TOP_LOGPROBS:
        raise BadMessage(
            "top_logprobs", f"{len(data.top_logprobs)} of them, at most {MAX_TOP_LOGPROBS}"
        )
    return Token(
        **_head(data),
        position=index("position", data.position),
        token=index("token", data.token),
        logprob=logprob("logprob", data.logprob) if data.HasField("logprob") else None,
        top_logprobs=tuple(
            (index("top_logprobs.token", each.token), logprob("top_logprobs.logprob", each.logprob))
            for each in data.top_logprobs
        ),
    )


def _decode_close(data: pb.Close) -> Close:
    return Close(**_head(data))


def _decode_failed(data: pb.Failed) -> Failed:
    return Failed(
        **_head(data),
        node=identifier("node", data.node),
        reason=text("reason", data.reason, MAX_REASON_LENGTH),
        retryable=data.retryable,
    )


def _head(data: Any) -> dict[str, Any]:
    return {
        "sequence_id": identifier("sequence_id", data.sequence_id),
        "epoch": identifier("epoch", data.epoch, MAX_EPOCH_LENGTH),
    }


_DECODERS: dict[str, Callable[[Any], Message]] = {
    "open": _decode_open,
    "forward": _decode_forward,
    "token": _decode_token,
    "close": _decode_close,
    "failed": _decode_failed,
}
