"""What travels the ring, as frozen records. Pure: no sockets, no protobuf (see
`grpc/wire/codec.py` for the bytes).

Direction: entry -> first stage -> ... -> last stage -> (token) -> first stage and entry.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from exo.inference.sampling.params import SamplingParams

Array = np.ndarray[Any, Any]
# The most bytes that the values of one `Forward` may take. It belongs to the message, not to a
# transport: whatever carries ring messages must carry one of this size.
MAX_VALUES_BYTES: Final = 8 * 1024 * 1024 - 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A sequence begins (or is replayed) on every stage of `epoch`; sent down the ring before its
    first `Forward`.

    tokens: prompt and what was produced so far: the last stage needs them for penalties and
        constraints.
    prompt_length: how many of `tokens` are prompt.
    max_length: tokens, prompt included, that the sequence can grow to; stages admit it by that. 0:
        unknown.
    request_id: of the HTTP request behind it, for the logs of every node it runs on.
    The first stage begins with `tokens`: no `Forward` comes from the entry.
    """

    sequence_id: str
    epoch: str
    entry: str
    tokens: tuple[int, ...]
    prompt_length: int
    params: SamplingParams
    max_length: int = 0
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forward:
    """Hidden states (T, hidden) float32, or token ids (T,) int64 for the first stage, from
    `position` on.

    sample: the last stage samples after this one (the last chunk of a prefill, or a decode step).
    values: at most `MAX_VALUES_BYTES` of them can be sent at once; see `parts`.
    """

    sequence_id: str
    epoch: str
    position: int
    values: Array
    sample: bool

    def parts(self) -> list[Forward]:
        """This message as the fewest that can be sent: consecutive, of about equal length.

        The receiver needs to know nothing about it: positions follow each other, and only the last
        part asks for a sample. Equal lengths keep a part of a single row from appearing, which an
        engine would compute as a decode step and might round differently.
        """
        rows = len(self.values)
        most = max(1, MAX_VALUES_BYTES * rows // max(1, self.values.nbytes))
        if rows <= most:
            return [self]
        count = -(-rows // most)
        bounds = [rows * i // count for i in range(count + 1)]
        return [
            replace(
                self,
                position=self.position + start,
                values=self.values[start:stop],
                sample=self.sample and stop == rows,
            )
            for start, stop in itertools.pairwise(bounds)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """The last stage chose `token` for `position`. Goes to the entry and, as the next step, to the
    first stage.
    """

    sequence_id: str
    epoch: str
    position: int
    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """The sequence is over (finished, cancelled or abandoned): free its KV.

    The entry sends it to every stage. A stage that has lost the entry passes it on to the next.
    """

    sequence_id: str
    epoch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A stage could not go on with a sequence; to the entry, which replays or gives up."""

    sequence_id: str
    epoch: str
    node: str
    reason: str
    retryable: bool


Message = Open | Forward | Token | Close | Failed
