"""Coverage-guided fuzzing of every frame and datagram a stranger can send, for as long as one
likes. Not in the suite.

    pip install atheris; mkdir corpus; python tests/fuzz/wire_with_atheris.py -max_total_time=300
    -max_len=4096 corpus

Anything but a record or `BadMessage` ends it with the bytes that did it in a file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris
import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]
with atheris.instrument_imports(
    include=["exo.networking", "exo.topology", "exo.inference.sampling.params"]
):
    from exo.inference.sampling.params import SamplingParams
    from exo.networking.errors import BadMessage
    from exo.networking.grpc.wire import control_codec as control
    from exo.networking.grpc.wire.codec import bundle, decode_all, encode
    from exo.networking.grpc.wire.params_codec import decode_params
    from exo.networking.messages import Close, Failed, Forward, Open, Token
    from exo.networking.udp.announcement import decode_announcement
    from exo.topology import NodeOffer

READERS = (
    decode_all,
    control.read_hello,
    control.read_challenge,
    control.read_proof,
    control.read_welcome,
    control.read_heartbeat,
    control.read_refused,
    lambda data: decode_announcement(data, b""),
    lambda data: decode_announcement(data, b"secret"),
    lambda data: decode_params(data.decode("utf-8", "replace")),
)


def one(data: bytes) -> None:
    for read in READERS:
        try:
            read(data)
        except BadMessage as error:
            if not error.field:
                raise


def seed(corpus: Path) -> None:
    """One good frame of each kind: what is random finds no way through the protobuf parser."""
    own = NodeOffer(node_id="n", incarnation=7, peers=("m",), pinned=(0, 3))
    head = {"sequence_id": "n.1/1/1", "epoch": "e"}
    frames = [
        encode(
            Open(
                **head,
                entry="n",
                tokens=(1, 2),
                prompt_length=2,
                params=SamplingParams(),
                max_length=9,
            )
        ),
        encode(Forward(**head, position=0, values=np.ones((2, 3), np.float32), sample=True)),
        encode(Token(**head, position=2, token=3, logprob=-0.5, top_logprobs=((3, -0.5),))),
        encode(Close(**head)),
        encode(Failed(**head, node="n", reason="r", retryable=True)),
        control.heartbeat_frame(1, own),
        control.challenge_frame(b"x" * 32, b"y" * 32, "n"),
        control.proof_frame(b"y" * 32),
        control.welcome_frame("", own),
        b'{"exo": 1, "cluster": "c", "node": "n", "port": 5, "incarnation": 7}',
        b'{"temperature": 0.5, "top_k": 3, "logit_bias": {"3": 1.0}}',
    ]
    for number, frame in enumerate([*frames, bundle(frames[:5])]):
        (corpus / f"seed{number}").write_bytes(frame)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if Path(argument).is_dir():
            seed(Path(argument))
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
