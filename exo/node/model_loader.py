"""`LocalModel`: the model that a node serves, as a resource.

It is found or fetched when the resource initializes. From then on it knows what is needed around
the engine: tokens and text, the samplers of the last stage, the footprint that plans are made from.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from exo.download import ModelSource, ShardDownloader
from exo.inference.engines.inference_engine import InferenceEngine, LoadProgress
from exo.inference.errors import InvalidRequest, ModelNotFound
from exo.inference.generation import GenerationRequest
from exo.inference.sampling.constraints import JsonConstraint, is_available
from exo.inference.shard import Shard
from exo.lifecycle import AsyncResource, ResourceUnavailable
from exo.networking.messages import Open
from exo.node.served_model import ServedModel
from exo.pipeline.samplers import SequenceSampler
from exo.pipeline.transcript import Transcript
from exo.topology import ModelFootprint

log = logging.getLogger(__name__)
ReadModel = Callable[[ModelSource], ServedModel]


class LocalModel(AsyncResource):
    """read: reads what is known of the model; it blocks, and runs in a thread.

    `progress` says what is being fetched or loaded now, and how far it is; None while nothing is.
    """

    RESOURCE_TYPE: ClassVar[str] = "model"

    def __init__(
        self, name: str, downloader: ShardDownloader, engine: InferenceEngine, read: ReadModel
    ) -> None:
        super().__init__(
            resource_id=f"model-{name}", display_name=f"Model {name}", initialize_timeout=3600.0
        )
        self._name = name
        self._downloader = downloader
        self._engine = engine
        self._read = read
        self._source: ModelSource | None = None
        self.served: ServedModel | None = None
        self.progress: str | None = None

    async def _do_initialize(self) -> None:
        self.progress = f"finding model {self._name}"
        self._source = await self._downloader.describe(self._name)
        self.served = await asyncio.to_thread(self._read, self._source)
        self.progress = None

    async def _do_cleanup(self) -> None:
        self._source = self.served = self.progress = None

    async def _do_health_check(self) -> bool:
        return self.served is not None

    def require(self, model_id: str) -> ServedModel:
        """Raises `ModelNotFound`."""
        if self.served is None or model_id != self.served.model_id:
            raise ModelNotFound(model_id, (self.served.model_id,) if self.served else ())
        return self.served

    def footprint(self) -> ModelFootprint:
        """Raises `ResourceUnavailable` before the model has been found."""
        if self.served is None:
            raise ResourceUnavailable(
                f"model {self._name!r} has not been found yet",
                resource_id=self.resource_id,
                state=self.state,
            )
        return self.served.footprint

    def transcript(self, request: GenerationRequest) -> Transcript:
        """At the entry node. Raises `ModelNotFound`."""
        served = self.require(request.model_id)
        return Transcript.of(request, served.tokenizer, served.ends)

    def sampler(self, opened: Open) -> SequenceSampler:
        """On the last stage, of a sequence of any entry node. Raises `InvalidRequest`."""
        schema, served = opened.params.json_schema, self.served
        if schema is None:
            return SequenceSampler(opened)
        if served is None or served.tokenizer is None or not is_available():
            raise InvalidRequest(
                "this stage cannot constrain answers to a JSON schema", field="json_schema"
            )
        return SequenceSampler(
            opened, JsonConstraint(served.tokenizer, schema, served.ends, served.vocab)
        )

    async def load(self, shard: Shard, *, keep_others: bool = False) -> None:
        """Make the engine hold this shard, in addition to what it holds or in its place."""
        assert self._source is not None
        self.progress = f"fetching layers {shard.start_layer}-{shard.end_layer}"
        try:
            path: Path = await self._downloader.ensure_shard(self._source, shard)
            self.progress = f"loading layers {shard.start_layer}-{shard.end_layer}"
            self._engine.on_progress = self._on_progress
            await (self._engine.add_checkpoint if keep_others else self._engine.load_checkpoint)(
                shard, path
            )
        finally:
            self.progress = None

    def _on_progress(self, progress: LoadProgress) -> None:
        if progress.bytes_total and self.progress is not None:
            percent = 100 * progress.bytes_done // progress.bytes_total
            self.progress = f"loading model {percent} %"
