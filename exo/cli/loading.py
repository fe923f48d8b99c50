"""An engine with a whole model, for commands without a server, and progress bars meanwhile."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from exo.cli.settings.records import local_settings
from exo.download import (
    DownloadProgress,
    LocalShardDownloader,
    ModelSource,
    ShardDownloader,
    hub_names,
)
from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.engines.engine import Engine
from exo.inference.engines.factory import create_engine
from exo.inference.engines.inference_engine import LoadProgress
from exo.inference.models import read_config
from exo.inference.shard import Shard
from exo.node.served_model import ShapeOnly
from exo.node.settings import NodeSettings


@contextlib.asynccontextmanager
async def loaded_engine(model: str, engine_name: str) -> AsyncIterator[tuple[Engine, Shard]]:
    """Raises `ModelNotFound` or `CheckpointError` before any weight is read."""
    settings = local_settings(os.environ)
    path, shard = await fetched(model, settings)
    engine = create_engine(engine_name, settings.engine_options)
    async with engine:
        with progress_bar(engine, shard.model_id):
            await engine.load_checkpoint(shard, path)
        yield engine, shard


async def fetched(model: str, settings: NodeSettings) -> tuple[Path, Shard]:
    """A model's checkpoint, complete on this machine, and the shard of all layers. Raises as
    `loaded_engine`.
    """
    async with downloader_of(model, settings) as downloader:
        with fetch_bar(downloader, model):
            source = await downloader.describe(model)
            shard = Shard.whole(source.model_id, layers_of(source))
            return await downloader.ensure_shard(source, shard), shard


def downloader_of(model: str, settings: NodeSettings) -> ShardDownloader:
    if not hub_names.is_hub_name(model):
        return LocalShardDownloader(settings.models_dir)
    from exo.download.hub_downloader import HubShardDownloader

    assert settings.cache_dir is not None  # the command line always finds one
    return HubShardDownloader(
        settings.cache_dir,
        revision=settings.hub_revision,
        token=settings.hub_token,
        endpoint=settings.hub_endpoint,
        models_dir=settings.models_dir,
        offline=settings.offline,
    )


@contextlib.contextmanager
def fetch_bar(downloader: ShardDownloader, name: str) -> Iterator[None]:
    """A bar while files come from the hub. None for a model that is here, or without a terminal."""
    with _bar("fetching") as bar:
        task = bar.add_task(name, total=None, visible=False)

        def advance(progress: DownloadProgress) -> None:
            bar.update(
                task, total=progress.bytes_total, completed=progress.bytes_done, visible=True
            )

        downloader.on_progress = advance
        yield


def layers_of(source: ModelSource) -> int:
    with (
        open_checkpoint(source.path)
        if source.weights_here
        else ShapeOnly(source.path) as checkpoint
    ):
        return read_config(checkpoint).n_layers


@contextlib.contextmanager
def progress_bar(engine: Engine, name: str) -> Iterator[None]:
    """A bar if standard error is a terminal, else one line when the model is loaded."""
    if not sys.stderr.isatty():
        started = time.monotonic()
        yield
        sys.stderr.write(f"loaded {name} in {time.monotonic() - started:.1f} s\n")
        return
    with _bar("loading") as bar:
        task = bar.add_task(name, total=None)

        def advance(progress: LoadProgress) -> None:
            bar.update(task, total=progress.bytes_total, completed=progress.bytes_done)

        engine.on_progress = advance
        yield
        engine.on_progress = None


def _bar(verb: str) -> Progress:
    columns = (
        TextColumn(verb + " {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    return Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    )
