"""`ShardDownloader`: from a model's name to files on this machine. Knows no engine and no plan.

There are two steps, so that a node of a ring fetches only its share: `describe` fetches what gives
the shape of the model (configuration, index, tokenizer), `ensure_shard` the weights of a shard.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from exo.inference.checkpoints.catalog import model_id_of, resolve_model
from exo.inference.engines.dummy import MODEL as DUMMY
from exo.inference.shard import Shard
from exo.lifecycle import AsyncResource


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model on this machine.

    revision: what pins its contents, "" where nothing does.
    weights_here: False where only the small files are here; `ensure_shard` fetches the weights.
    """

    model_id: str
    path: Path
    revision: str = ""
    weights_here: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadProgress:
    """Bytes of all the files of one `describe` or `ensure_shard`; files that are here already count
    as done.
    """

    bytes_done: int
    bytes_total: int


class ShardDownloader(AsyncResource, ABC):
    RESOURCE_TYPE: ClassVar[str] = "shard_downloader"

    def __init__(self) -> None:
        super().__init__(display_name=type(self).__name__)
        # Called on the event loop.
        self.on_progress: Callable[[DownloadProgress], None] | None = None

    async def describe(self, model: str) -> ModelSource:
        """Raises `ModelNotFound` or `CheckpointError`, naming the models there are."""
        await self.ensure_ready()
        return await self._describe(model)

    async def ensure_shard(self, source: ModelSource, shard: Shard) -> Path:
        """The checkpoint with at least the shard's tensors, ready to be loaded."""
        await self.ensure_ready()
        return await self._ensure_shard(source, shard)

    @abstractmethod
    async def _describe(self, model: str) -> ModelSource: ...

    @abstractmethod
    async def _ensure_shard(self, source: ModelSource, shard: Shard) -> Path: ...


class LocalShardDownloader(ShardDownloader):
    """Bundled models, paths and folders in `models_dir`: everything is on this machine already."""

    def __init__(self, models_dir: Path | None = None) -> None:
        super().__init__()
        self._models_dir = models_dir

    async def _describe(self, model: str) -> ModelSource:
        if model == DUMMY:  # the dummy engine needs no files
            return ModelSource(model_id=DUMMY, path=Path(DUMMY))
        path = await asyncio.to_thread(resolve_model, model, self._models_dir)
        return ModelSource(model_id=model_id_of(model), path=path)

    async def _ensure_shard(self, source: ModelSource, shard: Shard) -> Path:
        return source.path
