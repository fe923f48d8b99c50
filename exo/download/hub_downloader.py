"""`HubShardDownloader`: models of a Hugging Face hub as well as local ones. A node fetches only the
files of its shard.

A shard is laid out as a folder of hard links into the hub cache, with an index of just its files,
so that a checkpoint reader sees a complete checkpoint of what is there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from exo.download import hub_names
from exo.download.hub import Hub, Repository, is_unreachable
from exo.download.shard_downloader import DownloadProgress, LocalShardDownloader, ModelSource
from exo.inference.checkpoints.safetensors import SINGLE, read_json
from exo.inference.errors import CheckpointError
from exo.inference.shard import Shard
from exo.utils.error_handling import degrade, restore

PARALLEL = 4
# What the degradation is called in state, metrics and logs.
DEGRADATION = "hub"


class HubShardDownloader(LocalShardDownloader):
    """cache: folder for what is fetched.
    revision: used where the model's name gives none. See `Hub` for the rest.
    """

    def __init__(
        self,
        cache: Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        offline: bool = False,
        endpoint: str | None = None,
        models_dir: Path | None = None,
        pause: float = 0.5,
    ) -> None:
        super().__init__(models_dir)
        self._cache = cache
        self._revision = revision
        self._hub = Hub(cache / "hub", endpoint=endpoint, token=token, offline=offline, pause=pause)
        self._workers: ThreadPoolExecutor | None = None
        self._repositories: dict[Path, Repository] = {}

    async def _do_initialize(self) -> None:
        self._hub.cancelled.clear()
        self._workers = ThreadPoolExecutor(PARALLEL, thread_name_prefix="exo-download")

    async def _do_cleanup(self) -> None:
        self._hub.cancelled.set()
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.shutdown(wait=False, cancel_futures=True)
        self._repositories.clear()

    async def _describe(self, model: str) -> ModelSource:
        if not hub_names.is_hub_name(model):
            return await super()._describe(model)
        name = hub_names.parse(model)
        repository = await self._look_up(
            name.repo, name.revision or hub_names.checked_revision(self._revision)
        )
        gguf = hub_names.gguf_file(name, repository.files)
        if gguf is not None:
            (path,) = await self._fetch(repository, [gguf])
            return ModelSource(model_id=name.model_id, path=path, revision=repository.commit)
        small = [file for file in hub_names.SMALL_FILES if file in repository.files]
        if "config.json" not in small:
            raise CheckpointError(
                "the repository has neither config.json nor a GGUF file", path=name.repo
            )
        folder = (await self._fetch(repository, small))[0].parent
        self._repositories[folder] = repository
        return ModelSource(
            model_id=name.model_id, path=folder, revision=repository.commit, weights_here=False
        )

    async def _look_up(self, repo: str, revision: str | None) -> Repository:
        """Ask the hub; where it cannot be reached, use what an earlier run left, and declare the
        degradation.
        """
        try:
            found: Repository = await self._run(self._hub.look_up, repo, revision)
        except CheckpointError as error:
            if not is_unreachable(error) or self._workers is None:  # None: closing
                raise
            try:
                found = await self._run(self._hub.cached, repo, revision)
            except CheckpointError:
                raise error from error.__cause__
            degrade(DEGRADATION, to="the local cache", reason=error, resource=self)
        else:
            restore(DEGRADATION, resource=self)
        return found

    async def _ensure_shard(self, source: ModelSource, shard: Shard) -> Path:
        repository = self._repositories.get(source.path)
        if repository is None:
            return source.path
        weight_map = await asyncio.to_thread(_weight_map, source.path)
        files = sorted(hub_names.needed_files(weight_map, shard)) if weight_map else [SINGLE]
        missing = [file for file in files if file not in repository.files]
        if missing:
            raise CheckpointError(
                f"the repository has no file {missing[0]!r}", path=repository.repo
            )
        weights = await self._fetch(repository, files)
        return await asyncio.to_thread(self._lay_out, source.path, repository, weights, weight_map)

    async def _fetch(self, repository: Repository, names: Iterable[str]) -> list[Path]:
        """Fetch all of them, a few at a time; progress is reported file by file."""
        names = list(names)
        total = sum(repository.files[name].size for name in names)
        done = 0

        async def one(name: str) -> Path:
            nonlocal done
            path: Path = await self._run(self._hub.fetch, repository, name)
            done += repository.files[name].size
            if self.on_progress is not None:
                self.on_progress(DownloadProgress(bytes_done=done, bytes_total=total))
            return path

        return list(await asyncio.gather(*(one(name) for name in names)))

    async def _run(self, function: Any, *arguments: Any) -> Any:
        if self._workers is None:
            raise RuntimeError("the downloader is closed")
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)

    def _lay_out(
        self,
        described: Path,
        repository: Repository,
        weights: list[Path],
        weight_map: dict[str, str],
    ) -> Path:
        """The folder of this set of files. It is made under another name and then moved into place,
        so that two nodes may do it at once.
        """
        names = sorted(path.name for path in weights)
        tag = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
        folder = (
            self._cache
            / "shards"
            / f"{repository.repo.replace('/', '--')}--{repository.commit[:12]}--{tag}"
        )
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        try:
            small = [described / name for name in hub_names.SMALL_FILES if name != hub_names.INDEX]
            for path in (*(each for each in small if each.exists()), *weights):
                _link(path.resolve(), made / path.name)
            if weight_map:
                kept = {tensor: file for tensor, file in weight_map.items() if file in names}
                (made / hub_names.INDEX).write_text(json.dumps({"weight_map": kept}))
            made.rename(folder)
        except OSError as error:
            shutil.rmtree(made, ignore_errors=True)
            if not folder.is_dir():  # otherwise another node was faster
                raise CheckpointError(
                    f"cannot be laid out: {error.strerror or error}", path=str(folder)
                ) from error
        return folder


def _weight_map(folder: Path) -> dict[str, str]:
    """The map of the index; {} for a model in one file. Names that are not plain file names are
    refused.
    """
    if not (folder / hub_names.INDEX).exists():
        return {}
    found = read_json(folder / hub_names.INDEX).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError("has no weight_map", path=str(folder / hub_names.INDEX))
    for tensor, file in found.items():
        if (
            not isinstance(file, str)
            or Path(file).name != file
            or not file.endswith(".safetensors")
        ):
            raise CheckpointError(
                f"names {file!r} for {tensor!r}, which is not a safetensors file", path=str(folder)
            )
    return found


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
