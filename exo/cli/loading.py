"""An engine with a whole model, for commands without a server; a progress bar on the terminal while it loads."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from exo.download.shard_downloader import LocalShardDownloader
from exo.inference.checkpoint import open_checkpoint
from exo.inference.engine import CheckpointEngine, LoadProgress
from exo.inference.factory import create_engine
from exo.inference.models import read_config
from exo.inference.shard import Shard


@contextlib.asynccontextmanager
async def loaded_engine(model: str, engine_name: str) -> AsyncIterator[tuple[CheckpointEngine, Shard]]:
    """Raises `ModelNotFound` or `CheckpointError` before any weight is read."""
    async with LocalShardDownloader() as downloader:
        source = await downloader.describe(model)
        shard = Shard.whole(source.model_id, layers_of(source.path))
        path = await downloader.ensure_shard(source, shard)
    engine = create_engine(engine_name)
    assert isinstance(engine, CheckpointEngine)  # all that the factory makes
    async with engine:
        with progress_bar(engine, source.model_id):
            await engine.load_checkpoint(shard, path)
        yield engine, shard


def layers_of(path: Path) -> int:
    with open_checkpoint(path) as checkpoint:
        return read_config(checkpoint).n_layers


@contextlib.contextmanager
def progress_bar(engine: CheckpointEngine, name: str) -> Iterator[None]:
    """A bar where standard error is a terminal, else one line when the model is loaded."""
    if not sys.stderr.isatty():
        started = time.monotonic()
        yield
        sys.stderr.write(f"loaded {name} in {time.monotonic() - started:.1f} s\n")
        return
    columns = (TextColumn("loading {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)

        def advance(progress: LoadProgress) -> None:
            bar.update(task, total=progress.bytes_total, completed=progress.bytes_done)

        engine.on_progress = advance
        yield
        engine.on_progress = None
