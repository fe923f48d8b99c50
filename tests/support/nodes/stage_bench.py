"""One stage alone, for the tests of `exo.pipeline.stage` and `exo.pipeline.passes`."""

from __future__ import annotations

import numpy as np
import pytest

from exo.inference.engines.dummy import DummyEngine
from exo.inference.sampling.params import SamplingParams
from exo.inference.shard import Shard
from exo.networking.messages import Failed, Forward, Message, Open
from exo.pipeline.assignment import Assignment
from exo.pipeline.samplers import SequenceSampler
from exo.pipeline.scheduler import Limits
from exo.pipeline.stage import Stage

PARAMS = SamplingParams(temperature=0.0)
LAYERS = {"first": (0, 2), "middle": (3, 5), "last": (6, 7)}
NODES = ("first", "middle", "last")


class Bench:
    """A stage with its engine loaded, and what it sent."""

    def __init__(
        self, node_id: str, engine: DummyEngine | None = None, limits: Limits | None = None
    ) -> None:
        self.sent: list[tuple[str, Message]] = []
        self.unreachable = ""  # a node that nothing can be sent to
        self.engine = engine or DummyEngine()
        self.stage = Stage(node_id, self.engine, self._send, SequenceSampler, limits)
        start, end = LAYERS[node_id]
        self.assignment = Assignment(
            "e1", Shard("dummy", start, end, 8), NODES, NODES.index(node_id)
        )

    def _send(self, node_id: str, message: Message) -> None:
        self.sent.append((node_id, message))
        if node_id == self.unreachable:
            self.stage.fail(message.sequence_id, "not connected", retryable=True)

    async def begin(self) -> None:
        await self.engine.initialize()
        await self.engine.load_checkpoint(self.assignment.shard, "dummy")
        await self.stage.initialize()
        self.stage.serve(self.assignment)

    def kinds(self, node_id: str) -> list[str]:
        return [type(message).__name__ for to, message in self.sent if to == node_id]

    def failures(self) -> list[Failed]:
        return [message for _, message in self.sent if isinstance(message, Failed)]


def at(node_id: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bench", [node_id], indirect=True)


def opened(
    sequence_id: str = "s", entry: str = "entry", epoch: str = "e1", tokens: int = 3
) -> Open:
    return Open(
        sequence_id=sequence_id,
        epoch=epoch,
        entry=entry,
        tokens=tuple(range(10, 10 + tokens)),
        prompt_length=tokens,
        params=PARAMS,
        max_length=20,
    )


def forward(position: int = 0, rows: int = 3, *, sample: bool = True, epoch: str = "e1") -> Forward:
    values = np.ones((rows, 8), np.float32)
    return Forward(sequence_id="s", epoch=epoch, position=position, values=values, sample=sample)
