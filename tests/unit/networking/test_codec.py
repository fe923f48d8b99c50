"""Ring messages survive the wire exactly; what is wrong is refused by field."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.inference.sampling.params import SamplingParams
from exo.networking.errors import BadMessage
from exo.networking.grpc.wire import exo_pb2 as pb
from exo.networking.grpc.wire.checks import MAX_MESSAGE_BYTES
from exo.networking.grpc.wire.codec import decode, encode
from exo.networking.messages import MAX_VALUES_BYTES, Close, Failed, Forward, Open, Token

steady = settings(derandomize=True, deadline=None)
printable = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1)
head = {
    "sequence_id": printable.filter(lambda x: len(x) <= 128),
    "epoch": printable.filter(lambda x: len(x) <= 64),
}
numbers = st.integers(0, 2**31 - 1)
floats = st.floats(0, 1, allow_nan=False)
params = st.builds(
    SamplingParams,
    temperature=st.floats(0, 100),
    top_p=floats,
    top_k=numbers,
    min_p=floats,
    typical_p=floats,
    repetition_penalty=st.floats(0.01, 10),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    logit_bias=st.dictionaries(numbers, st.floats(-100, 100), max_size=4),
    seed=st.integers(-(2**63), 2**63 - 1),
    logprobs=st.none() | st.integers(0, 20),
    json_schema=st.none() | st.dictionaries(st.text(), st.text(), max_size=3),
)
logprobs = st.floats(max_value=0, allow_nan=False)


@steady
@given(
    st.one_of(
        st.builds(
            Open,
            **head,
            entry=head["sequence_id"],
            tokens=st.lists(numbers, min_size=1).map(tuple),
            prompt_length=st.just(1),
            params=params,
            max_length=numbers,
            request_id=st.just("") | head["sequence_id"],
        ),
        st.builds(
            Token,
            **head,
            position=numbers,
            token=numbers,
            logprob=st.none() | logprobs,
            top_logprobs=st.lists(st.tuples(numbers, logprobs), max_size=5).map(tuple),
        ),
        st.builds(Close, **head),
        st.builds(
            Failed,
            **head,
            node=head["sequence_id"],
            reason=st.text(max_size=99),
            retryable=st.booleans(),
        ),
    )
)
def test_a_message_comes_out_as_it_went_in(message):
    assert decode(encode(message)) == message


@steady
@given(st.integers(1, 5), st.integers(1, 7), st.booleans(), st.booleans())
def test_a_tensor_keeps_every_bit(rows, hidden, whole, sample):
    rng = np.random.default_rng(rows * 10 + hidden)
    values = (
        rng.integers(0, 2**31, rows)
        if whole
        else rng.standard_normal((rows, hidden)).astype(np.float32)
    )
    sent = Forward(sequence_id="s", epoch="e", position=3, values=values, sample=sample)
    got = decode(encode(sent))
    assert isinstance(got, Forward)
    assert (got.sequence_id, got.epoch, got.position, got.sample) == ("s", "e", 3, sample)
    assert got.values.dtype == values.dtype
    assert got.values.tobytes() == values.tobytes()
    assert got.values.shape == values.shape


def test_the_largest_chunk_fits_and_one_row_more_does_not():
    rows = MAX_VALUES_BYTES // (4 * 4096)
    fits = Forward(
        sequence_id="s" * 128,
        epoch="e" * 64,
        position=0,
        values=np.zeros((rows, 4096), "f4"),
        sample=True,
    )
    assert len(encode(fits)) <= MAX_MESSAGE_BYTES
    too_large = Forward(
        sequence_id="s", epoch="e", position=0, values=np.zeros((rows + 1, 4096), "f4"), sample=True
    )
    with pytest.raises(BadMessage, match=r"^values: .* send it in parts"):
        encode(too_large)


@steady
@given(
    st.integers(1, 1000), st.sampled_from([8, 4096, 8192, 16384]), st.booleans(), st.integers(0, 99)
)
def test_a_chunk_of_any_size_travels_in_consecutive_parts(rows, hidden, sample, position):
    values = np.broadcast_to(np.arange(rows, dtype="f4")[:, None], (rows, hidden))
    whole = Forward(
        sequence_id="s" * 128, epoch="e" * 64, position=position, values=values, sample=sample
    )
    parts = whole.parts()
    expected = position
    for part in parts:
        assert part.position == expected
        assert part.values.nbytes <= MAX_VALUES_BYTES
        # An engine would take a single row for a decode step.
        assert len(part.values) > 1 or rows == 1
        expected += len(part.values)
    assert np.array_equal(np.concatenate([part.values for part in parts])[:, 0], values[:, 0])
    assert [part.sample for part in parts] == [False] * (len(parts) - 1) + [sample]
    assert len(parts) == -(-rows // (MAX_VALUES_BYTES // (4 * hidden)))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (
            Forward(sequence_id="s", epoch="e", position=0, values=np.zeros((2, 2)), sample=True),
            "values",
        ),
        (
            Forward(sequence_id="s", epoch="e", position=-1, values=np.zeros(2, "i8"), sample=True),
            "Forward",
        ),
        (Token(sequence_id="s", epoch="e", position=0, token=2**40), "Token"),
        (Close(sequence_id="\ud800", epoch="e"), "Close"),
    ],
)
def test_what_no_peer_would_take_is_not_sent(message, field):
    with pytest.raises(BadMessage) as caught:
        encode(message)
    assert caught.value.field == field


def forward(**changes):
    fields = {
        "sequence_id": "s",
        "epoch": "e",
        "dtype": 1,
        "shape": [1, 2],
        "values": bytes(8),
        **changes,
    }
    return pb.Frame(forward=pb.Forward(**fields))


def opened(**changes):
    fields = {
        "sequence_id": "s",
        "epoch": "e",
        "entry": "n",
        "tokens": [1, 2],
        "prompt_length": 1,
        **changes,
    }
    return pb.Frame(open=pb.Open(**fields))


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        (pb.Frame(), "kind"),
        (pb.Frame(heartbeat=pb.Heartbeat(number=1)), "kind"),
        (forward(sequence_id=""), "sequence_id"),
        (forward(sequence_id="x" * 129), "sequence_id"),
        (forward(sequence_id="a\nb"), "sequence_id"),
        (forward(epoch=""), "epoch"),
        (forward(epoch="x" * 65), "epoch"),
        (forward(dtype=0), "dtype"),
        (forward(dtype=9), "dtype"),
        (forward(shape=[]), "shape"),
        (forward(shape=[2]), "shape"),
        (forward(shape=[1, 2, 1]), "shape"),
        (forward(shape=[0, 2], values=b""), "shape"),
        (forward(shape=[2**32 - 1, 2**32 - 1]), "values"),
        (forward(values=bytes(7)), "values"),
        (forward(dtype=2, shape=[1], values=(-1).to_bytes(8, "little", signed=True)), "values"),
        (forward(dtype=2, shape=[1], values=(2**31).to_bytes(8, "little")), "values"),
        (forward(position=2**31), "position"),
        (opened(entry=""), "entry"),
        (opened(tokens=[]), "tokens"),
        (opened(tokens=[2**31]), "tokens"),
        (opened(prompt_length=3), "prompt_length"),
        (opened(params_json="{"), "params_json"),
        (opened(params_json="[]"), "params_json"),
        (opened(params_json="[" * 100_000), "params_json"),
        (opened(params_json=" " * 300_000), "params_json"),
        (opened(params_json='{"temperature": "hot"}'), "params_json.temperature"),
        (opened(params_json='{"temperature": NaN}'), "params_json.temperature"),
        (opened(params_json='{"temperature": -1}'), "params_json.temperature"),
        (opened(params_json='{"top_k": 1.5}'), "params_json.top_k"),
        (opened(params_json='{"logit_bias": {"x": 1}}'), "params_json.logit_bias"),
        (opened(params_json='{"logit_bias": {"1": Infinity}}'), "params_json.logit_bias"),
        (opened(params_json='{"json_schema": 1}'), "params_json.json_schema"),
        (opened(request_id="x" * 129), "request_id"),
        (opened(request_id="a\nb"), "request_id"),
        (pb.Frame(token=pb.Token(sequence_id="s", epoch="e", token=2**31)), "token"),
        (pb.Frame(token=pb.Token(sequence_id="s", epoch="e", logprob=float("nan"))), "logprob"),
        (
            pb.Frame(
                token=pb.Token(sequence_id="s", epoch="e", top_logprobs=[pb.TopLogprob()] * 257)
            ),
            "top_logprobs",
        ),
        (
            pb.Frame(failed=pb.Failed(sequence_id="s", epoch="e", node="n", reason="x" * 1025)),
            "reason",
        ),
    ],
)
def test_a_bad_frame_is_refused_by_field(frame, field):
    with pytest.raises(BadMessage) as caught:
        decode(frame.SerializeToString())
    assert caught.value.field == field


@pytest.mark.parametrize("data", [b"\xff" * 10, b"\x5a\x05abc", bytes(MAX_MESSAGE_BYTES + 1)])
def test_bytes_that_are_no_frame_are_refused(data):
    with pytest.raises(BadMessage, match=r"^frame: "):
        decode(data)


def test_text_that_is_no_utf8_is_refused():
    data = (
        pb.Frame(close=pb.Close(sequence_id="sss", epoch="e"))
        .SerializeToString()
        .replace(b"sss", b"\xff\xfe\xfd")
    )
    with pytest.raises(BadMessage, match=r"^frame: "):
        decode(data)
