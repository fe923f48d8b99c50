"""`LocalModel`: the node's model as a resource: found or fetched when it initializes, then there to
be asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from exo.download import ModelSource, ShardDownloader
from exo.inference.engines.inference_engine import InferenceEngine, LoadProgress
from exo.inference.errors import ModelNotFound
from exo.inference.shard import Shard
from exo.lifecycle import AsyncResource
from exo.node.served_model import ServedModel

log = logging.getLogger(__name__)
ReadModel = Callable[[ModelSource], ServedModel]


class LocalModel(AsyncResource):
    """`read` blocks and runs in a thread. `progress`: what a load that runs has done,
    in percent.
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

    async def load(self, shard: Shard, *, beside: bool = False) -> None:
        """The engine holds this shard afterwards, in place of what it held or `beside` it."""
        assert self._source is not None
        self.progress = f"fetching layers {shard.start_layer}-{shard.end_layer}"
        try:
            path: Path = await self._downloader.ensure_shard(self._source, shard)
            self.progress = f"loading layers {shard.start_layer}-{shard.end_layer}"
            self._engine.on_progress = self._on_progress
            await (self._engine.add_checkpoint if beside else self._engine.load_checkpoint)(
                shard, path
            )
        finally:
            self.progress = None

    def _on_progress(self, progress: LoadProgress) -> None:
        if progress.bytes_total and self.progress is not None:
            percent = 100 * progress.bytes_done // progress.bytes_total
            self.progress = f"loading model {percent} %"
