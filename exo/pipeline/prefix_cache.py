"""`PrefixCache`: what an earlier sequence has computed (the same system prompt, the turns before)
is not computed again.

Where this node has all layers: the stages of a longer ring would have to agree on how much they
still know. Asks the engine for those that the scheduler has admitted; owns neither, and knows no
messages, no peers and no passes.
"""

from __future__ import annotations

from collections.abc import Mapping

from exo.inference.engines.inference_engine import InferenceEngine
from exo.inference.errors import Overloaded
from exo.lifecycle import ResourceError
from exo.pipeline.scheduler import Scheduler
from exo.pipeline.stage_sequence import StageSequence


class PrefixCache:
    def __init__(
        self, engine: InferenceEngine, scheduler: Scheduler, lanes: Mapping[str, StageSequence]
    ) -> None:
        self._engine, self._scheduler, self._lanes = engine, scheduler, lanes

    async def reuse(self) -> None:
        """For each sequence admitted since; between passes only."""
        # Again until none is left: one admitted while the engine was asked for another must not run
        # before it is asked for itself, as asking begins a sequence anew.
        while admitted := self._scheduler.take_admitted():
            for lane_id in admitted:
                await self._reuse(lane_id)

    async def _reuse(self, lane_id: str) -> None:
        lane = self._lanes.get(lane_id)
        if lane is None or not (lane.assignment.is_first and lane.assignment.is_last):
            return
        try:
            known = await self._engine.reuse_prefix(lane_id, lane.tokens)
        except (Overloaded, ResourceError):
            return  # the pass itself will tell
        if known and lane_id in self._lanes:
            self._scheduler.skip(lane_id, known)
