"""Whatever bytes a stranger sends: a record or `BadMessage`, soon, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.networking.errors import BadMessage
from exo.networking.grpc.wire import control_codec
from exo.networking.grpc.wire import exo_pb2 as pb
from exo.networking.grpc.wire.codec import MAX_BUNDLE, decode, decode_all, encode
from exo.networking.grpc.wire.params_codec import decode_params, encode_params
from exo.networking.manual.peers_file import BadPeersFile, parse_peers
from exo.networking.messages import Close, Failed, Forward, Open, Token
from exo.networking.udp.announcement import (
    MAX_DATAGRAM_BYTES,
    Announcement,
    decode_announcement,
    encode_announcement,
)

much = settings(max_examples=120, derandomize=True, deadline=None)

READERS = [
    decode,
    decode_all,
    control_codec.read_hello,
    control_codec.read_challenge,
    control_codec.read_proof,
    control_codec.read_welcome,
    control_codec.read_heartbeat,
    control_codec.read_refused,
]
anything = st.text() | st.integers(-(2**70), 2**70) | st.floats() | st.booleans() | st.none()
json_values = st.recursive(
    anything,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
)
uint32, uint64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
floats64 = st.floats()
TEXT, BYTES = st.text(max_size=200), st.binary(max_size=64)


def messages(kind: type, depth: int = 3) -> st.SearchStrategy:
    """Any message of this protobuf type, every field with any value that the wire can carry."""
    fields = {}
    for field in kind.DESCRIPTOR.fields:
        value = {
            field.TYPE_STRING: TEXT,
            field.TYPE_BYTES: BYTES,
            field.TYPE_UINT32: uint32,
            field.TYPE_UINT64: uint64,
            field.TYPE_BOOL: st.booleans(),
            field.TYPE_DOUBLE: floats64,
            field.TYPE_ENUM: st.integers(-5, 5),
        }.get(field.type)
        if field.type == field.TYPE_MESSAGE:
            if depth == 0:
                continue
            value = messages(getattr(pb, field.message_type.name), depth - 1)
        fields[field.name] = st.lists(value, max_size=4) if field.is_repeated else value
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: kind(**given))


frames = st.one_of(
    messages(getattr(pb, field.message_type.name)).map(
        lambda message, name=field.name: pb.Frame(**{name: message})
    )
    for field in pb.Frame.DESCRIPTOR.fields
)


def refused(read, *arguments) -> BadMessage | BadPeersFile | None:
    """The refusal, None where it was taken; any other error is a failure of the test."""
    try:
        read(*arguments)
    except (BadMessage, BadPeersFile) as error:
        return error
    return None


def read_all(data: bytes) -> None:
    for reader in READERS:
        error = refused(reader, data)
        assert error is None or error.field


@much
@given(st.binary(max_size=400))
def test_random_bytes(data):
    read_all(data)


@much
@given(frames)
def test_any_well_formed_frame(frame):
    read_all(frame.SerializeToString())


@much
@given(frames, st.data())
def test_a_frame_with_a_few_bytes_changed_cut_or_doubled(frame, data):
    raw = bytearray(frame.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        if not raw:
            break
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                raw[at] = data.draw(st.integers(0, 255))
            case 1:
                del raw[at:]
            case 2:
                raw[at:at] = raw[at:]
    read_all(bytes(raw))


small = st.integers(0, 3)
nearly_right = st.builds(
    lambda shape, size, dtype, position: pb.Frame(
        forward=pb.Forward(
            sequence_id="s",
            epoch="e",
            shape=shape,
            dtype=dtype,
            position=position,
            values=bytes(4 * size),
        )
    ),
    st.lists(small, max_size=3),
    st.integers(0, 6),
    small,
    uint32,
)


@much
@given(frames | nearly_right)
def test_what_is_accepted_is_within_its_bounds_and_can_be_sent_on(frame):
    data = frame.SerializeToString()
    if refused(decode, data):
        return
    message = decode(data)
    assert isinstance(message, Open | Forward | Token | Close | Failed)
    assert 1 <= len(message.sequence_id) <= 128
    assert 1 <= len(message.epoch) <= 64
    again = decode(encode(message))
    if isinstance(message, Forward):
        assert again.values.tobytes() == message.values.tobytes()
        assert not message.values.flags.writeable
    else:
        assert again == message


@much
@given(
    json_values
    | st.dictionaries(
        st.sampled_from(["temperature", "top_k", "seed", "logit_bias", "json_schema"]), json_values
    )
)
def test_any_json_as_sampling_parameters(value):
    text = json.dumps(value)
    if error := refused(decode_params, text):
        assert error.field.startswith("params_json")
        return
    params = decode_params(text)
    assert decode_params(encode_params(params)) == params


def announcements() -> st.SearchStrategy:
    keys = st.sampled_from(["exo", "cluster", "node", "port", "incarnation", "mac"]) | st.text(
        max_size=5
    )
    return st.dictionaries(keys, json_values, max_size=7) | json_values


@much
@given(
    st.binary(max_size=1200) | announcements().map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"", b"secret"]),
)
def test_any_datagram(data, secret):
    if refused(decode_announcement, data, secret):
        return
    assert not secret, "nobody guesses an HMAC"
    announcement = decode_announcement(data, secret)
    assert decode_announcement(encode_announcement(announcement, b""), b"") == announcement
    assert 1 <= announcement.grpc_port <= 65535


names = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=40)


@much
@given(
    names,
    names,
    st.integers(1, 65535),
    st.integers(0, 2**63 - 1),
    st.binary(min_size=1, max_size=40),
)
def test_an_announcement_needs_the_secret_it_was_made_with(
    cluster, node, port, incarnation, secret
):
    sent = Announcement(cluster=cluster, node_id=node, grpc_port=port, incarnation=incarnation)
    data = encode_announcement(sent, secret)
    assert len(data) <= MAX_DATAGRAM_BYTES
    assert decode_announcement(data, secret) == sent
    for other in (b"", secret + b"x"):
        with pytest.raises(BadMessage, match=r"^mac: "):
            decode_announcement(data, other)


@much
@given(
    st.text()
    | json_values.map(json.dumps)
    | st.dictionaries(st.just("peers"), json_values).map(json.dumps)
)
def test_any_peers_file(text):
    if refused(parse_peers, text) is None:
        assert all(1 <= each.port <= 65535 and each.address for each in parse_peers(text))


def test_the_largest_message_is_read_without_a_copy_for_every_claim_it_makes():
    lie = pb.Frame(
        forward=pb.Forward(
            sequence_id="s", epoch="e", dtype=1, shape=[2**31, 2**31], values=bytes(8)
        )
    )
    with pytest.raises(BadMessage, match=r"^values: "):
        decode(lie.SerializeToString())
    many = pb.Frame(
        forward=pb.Forward(
            sequence_id="s", epoch="e", dtype=1, shape=[1] * 100_000, values=bytes(8)
        )
    )
    with pytest.raises(BadMessage, match=r"^shape: ") as caught:
        decode(many.SerializeToString())
    assert len(str(caught.value)) < 200
    honest = Forward(
        sequence_id="s", epoch="e", position=0, values=np.ones((4, 4), np.float32), sample=False
    )
    assert decode(encode(honest)).values.base is not None


def test_a_bundle_holds_a_bounded_number_of_frames_and_no_bundle():
    close = pb.Frame(close=pb.Close(sequence_id="s", epoch="e")).SerializeToString()
    assert (
        len(decode_all(pb.Frame(bundle=pb.Bundle(frames=[close] * MAX_BUNDLE)).SerializeToString()))
        == MAX_BUNDLE
    )
    nested = pb.Frame(bundle=pb.Bundle(frames=[close])).SerializeToString()
    for frames, field in (
        ([close] * (MAX_BUNDLE + 1), "bundle"),
        ([], "bundle"),
        ([nested], "kind"),
    ):
        with pytest.raises(BadMessage) as caught:
            decode_all(pb.Frame(bundle=pb.Bundle(frames=frames)).SerializeToString())
        assert caught.value.field == field
