"""Nodes of two releases understand each other, and no field of a record can be forgotten."""

from __future__ import annotations

import dataclasses
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from ring_nodes import RecordingHandler, make_handle, make_server

from exo.inference.sampling.params import SamplingParams
from exo.networking.errors import BadMessage
from exo.networking.grpc.wire import control_codec as wire
from exo.networking.grpc.wire import exo_pb2 as pb
from exo.networking.grpc.wire import params_codec
from exo.networking.grpc.wire.codec import decode, encode
from exo.networking.grpc.wire.offer_codec import decode_offer, encode_offer
from exo.networking.grpc.wire.params_codec import decode_params, encode_params
from exo.networking.messages import Close, Failed, Forward, Message, Open, Token
from exo.topology import NodeOffer, NodeState

# One value of each type that a field may have; other than any default.
SAMPLES: dict[Any, Any] = {
    int: 7,
    int | None: 3,
    float: 0.75,
    bool: True,
    str: "text",
    NodeState: NodeState.LEAVING,
    tuple[str, ...]: ("b", "c"),
    tuple[int, int] | None: (2, 5),
    dict[int, float]: {5: -1.5},
    dict[str, Any] | None: {"type": "object"},
}
OFFER = NodeOffer(
    node_id="a",
    incarnation=17,
    address="10.0.0.1",
    grpc_port=50051,
    api_port=52415,
    memory_mib=2048,
    cores=8,
    state=NodeState.SERVING,
    model_id="m",
    model_hash="abc",
    epoch="e1",
    engine="onnx",
    peers=("b", "c"),
    slow=("c",),
    stuck="a pass hangs",
    pass_ms=12,
    queued=True,
    pinned=(0, 14),
)
PARAMS = SamplingParams(
    temperature=0.5,
    top_p=0.9,
    top_k=40,
    min_p=0.1,
    typical_p=0.8,
    repetition_penalty=1.1,
    presence_penalty=0.2,
    frequency_penalty=0.3,
    logit_bias={5: -1.5},
    seed=7,
    logprobs=2,
    json_schema={"type": "object"},
)
MESSAGES: dict[str, Message] = {
    "open": Open(
        sequence_id="a.1/1/1",
        epoch="e1",
        entry="a",
        tokens=(1, 2, 3),
        prompt_length=2,
        params=PARAMS,
        max_length=50,
    ),
    "plain_open": Open(
        sequence_id="a.1/1/1",
        epoch="e1",
        entry="a",
        tokens=(1,),
        prompt_length=1,
        params=SamplingParams(),
    ),
    "token": Token(
        sequence_id="s", epoch="e", position=3, token=9, logprob=-0.5, top_logprobs=((9, -0.5),)
    ),
    "close": Close(sequence_id="s", epoch="e"),
    "failed": Failed(sequence_id="s", epoch="e", node="a", reason="r", retryable=True),
}
# Made by the release 0.1.0. Bytes in this file are never made anew: a change here means that nodes
# of two releases do not understand each other during an upgrade.
RECORDED: dict[str, str] = json.loads(Path(__file__).with_name("recorded_wire.json").read_text())


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_written_and_read_as_the_first_release_did(name: str) -> None:
    data = bytes.fromhex(RECORDED[name])
    assert encode(MESSAGES[name]) == data
    assert decode(data) == MESSAGES[name]


def test_a_tensor_is_written_and_read_as_the_first_release_did() -> None:
    data = bytes.fromhex(RECORDED["forward"])
    values = np.ones((1, 2), np.float32)
    assert (
        encode(Forward(sequence_id="s", epoch="e", position=3, values=values, sample=True)) == data
    )
    read = decode(data)
    assert isinstance(read, Forward)
    assert np.array_equal(read.values, values)


def test_hello_and_heartbeat_are_written_and_read_as_the_first_release_did() -> None:
    hello = wire.HelloFrame(cluster="x", protocol=1, offer=OFFER, nonce=bytes(32))
    plain = NodeOffer(node_id="a", incarnation=1)
    assert wire.hello_frame(hello).hex() == RECORDED["hello"]
    assert wire.read_hello(bytes.fromhex(RECORDED["hello"])) == hello
    assert wire.heartbeat_frame(3, OFFER).hex() == RECORDED["heartbeat"]
    assert wire.read_heartbeat(bytes.fromhex(RECORDED["heartbeat"])) == (3, OFFER)
    assert wire.heartbeat_frame(1, plain).hex() == RECORDED["plain_offer"]
    assert wire.read_heartbeat(bytes.fromhex(RECORDED["plain_offer"])) == (1, plain)


def names(record: type[Any]) -> list[str]:
    return [each.name for each in dataclasses.fields(record)]


@pytest.mark.parametrize("name", names(SamplingParams))
def test_every_sampling_parameter_travels(name: str) -> None:
    value = SAMPLES[get_type_hints(SamplingParams)[name]]
    params = SamplingParams(**{name: value})
    assert params != SamplingParams()
    assert decode_params(encode_params(params)) == params


@pytest.mark.parametrize("name", names(NodeOffer))
def test_every_field_of_an_offer_travels(name: str) -> None:
    value = SAMPLES[get_type_hints(NodeOffer)[name]]
    plain = {"node_id": "a", "incarnation": 1}
    offer = NodeOffer(**{**plain, name: value})
    assert offer != NodeOffer(**plain)
    assert decode_offer(encode_offer(offer)) == offer


def test_an_offer_on_the_wire_has_no_field_that_the_record_lacks() -> None:
    assert {field.name for field in pb.Offer.DESCRIPTOR.fields} == set(names(NodeOffer))


def test_a_field_that_an_older_node_does_not_send_has_its_default() -> None:
    """Absence cannot be told from zero unless the field is `optional`: then its default counts."""
    always_sent = {"node_id", "incarnation", "state", "cores"}
    wrong = []
    for each in dataclasses.fields(NodeOffer):
        on_wire = pb.Offer.DESCRIPTOR.fields_by_name[each.name]
        zero = {int: 0, str: "", bool: False, tuple: ()}.get(type(each.default))
        if each.name not in always_sent and not on_wire.has_presence and each.default != zero:
            wrong.append(each.name)
    assert wrong == []


def test_a_field_that_only_a_newer_node_sends_is_ignored() -> None:
    newer = pb.Offer(node_id="a", incarnation=1, state="joining", cores=1).SerializeToString()
    # Field 1000, a string.
    newer += b"\xc2\x3e\x05hello"
    assert decode_offer(pb.Offer.FromString(newer)) == NodeOffer(node_id="a", incarnation=1)


def test_a_sampling_parameter_of_a_newer_node_is_ignored_and_reported_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(params_codec, "_reported", set())
    for _ in range(3):
        assert decode_params('{"temperature":0.5,"colour":1}') == SamplingParams(temperature=0.5)
    assert [record.args for record in caplog.records] == [("colour",)]


def test_a_peer_cannot_fill_the_log_with_unknown_names(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(params_codec, "_reported", set())
    for i in range(100):
        decode_params(json.dumps({f"n{i}" + "x" * 1000: 1, f"m{i}": 2}))
    assert len(caplog.records) == params_codec.MAX_REPORTED
    assert max(len(record.getMessage()) for record in caplog.records) < 200


def test_a_known_parameter_is_checked_all_the_same() -> None:
    with pytest.raises(BadMessage, match=r"params_json\.top_p"):
        decode_params('{"top_p":2,"colour":1}')


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewerParams(SamplingParams):
    colour: int = 0


async def test_a_request_of_a_newer_node_ends_no_stream() -> None:
    a, b = RecordingHandler("a"), RecordingHandler("b")
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(make_server(b))
        handle = await stack.enter_async_context(make_handle(a, server.port))
        opened = MESSAGES["plain_open"]
        assert isinstance(opened, Open)
        newer = dataclasses.replace(opened, params=NewerParams(temperature=0.5, colour=3))
        await handle.send(newer)
        await handle.send(MESSAGES["close"])
        await b.until(lambda: len(b.messages) == 2)
        older = dataclasses.replace(opened, params=SamplingParams(temperature=0.5))
        assert [message for _, message in b.messages] == [older, MESSAGES["close"]]
        assert handle.is_connected()


def test_a_request_id_travels_and_one_that_a_client_chose_badly_ends_no_stream() -> None:
    opened = MESSAGES["plain_open"]
    assert isinstance(opened, Open)
    for given, read in (("req_1", "req_1"), ("a\nb", "a?b"), ("x" * 500, "x" * 128), ("", "")):
        assert decode(encode(dataclasses.replace(opened, request_id=given))) == dataclasses.replace(
            opened, request_id=read
        )
