"""Models of a hub, from a hub-compatible server on loopback with faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from golden_data import DATA
from hub_server import COMMIT, Hub, serve
from loopback import until

from exo.download.hub_downloader import HubShardDownloader
from exo.inference.errors import CheckpointError, InvalidRequest, ModelNotFound
from exo.inference.numpy.engine import NumpyEngine
from exo.inference.shard import Shard
from exo.lifecycle import ResourceState
from exo.lifecycle.testing.conformance import check_resource
from exo.node.served_model import read_model
from exo.utils.error_handling import degradations

MODEL = "hf:owner/model"
SHARDED = DATA / "qwen3-qknorm-sharded"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    # The library's own pauses between its tries are seconds long.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    # It goes on behind whole chunks, of 10 MB unless told.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 16 * 1024)
    names = [path for path in SHARDED.iterdir() if path.suffix in (".json", ".safetensors")]
    files = {path.name: path.read_bytes() for path in names}
    with serve(
        Hub({**files, "modeling_evil.py": b"raise SystemExit", "pytorch_model.bin": b"pickle"})
    ) as served:
        yield served


@pytest.fixture
async def downloader(hub: Hub, tmp_path: Path) -> AsyncIterator[HubShardDownloader]:
    made = HubShardDownloader(tmp_path, endpoint=hub.url, pause=0.001)
    async with made:
        yield made


def weights(hub: Hub) -> list[str]:
    return sorted(name for name in hub.files if name.endswith(".safetensors"))


def whole(folder: Path) -> Shard:
    model = read_model("model", folder, "numpy", revision=COMMIT, weights_here=False)
    return Shard.whole("model", model.n_layers)


async def test_describing_a_model_fetches_no_weights_and_nothing_that_could_be_run(
    hub: Hub, downloader: HubShardDownloader
) -> None:
    source = await downloader.describe(MODEL)
    assert (source.model_id, source.revision, source.weights_here) == ("model", COMMIT, False)
    model = read_model("model", source.path, "numpy", revision=source.revision, weights_here=False)
    assert model.n_layers > 1
    assert not {name for name in hub.fetched() if name.endswith((".safetensors", ".py", ".bin"))}


async def test_a_shard_fetches_only_the_files_with_its_layers_and_loads(
    hub: Hub, downloader: HubShardDownloader
) -> None:
    source = await downloader.describe(MODEL)
    layers = whole(source.path).n_layers
    shard = Shard("model", 1, 1, layers)
    folder = await downloader.ensure_shard(source, shard)
    fetched = {name for name in hub.fetched() if name.endswith(".safetensors")}
    assert fetched
    assert len(fetched) < len(weights(hub))
    async with NumpyEngine() as engine:
        await engine.load_checkpoint(shard, folder)
        assert engine.shard == shard


async def test_the_whole_model_from_the_hub_is_the_one_on_disk(
    hub: Hub, downloader: HubShardDownloader
) -> None:
    source = await downloader.describe(MODEL)
    folder = await downloader.ensure_shard(source, whole(source.path))
    for name in weights(hub):
        assert (folder / name).read_bytes() == hub.files[name]
    assert await downloader.ensure_shard(source, whole(source.path)) == folder


@pytest.mark.parametrize(
    "faults", [["429"], ["503", "500"], ["cut"], ["cut", "429", "cut"], ["wrong"], ["late"]]
)
async def test_faults_that_pass_are_overcome(
    hub: Hub, downloader: HubShardDownloader, faults: list[str]
) -> None:
    source = await downloader.describe(MODEL)
    name = weights(hub)[0]
    hub.faults[name] = list(faults)
    folder = await downloader.ensure_shard(source, whole(source.path))
    assert (folder / name).read_bytes() == hub.files[name]
    assert hub.faults[name] == []


async def test_a_cut_download_goes_on_where_it_was_cut(
    hub: Hub, downloader: HubShardDownloader
) -> None:
    source = await downloader.describe(MODEL)
    name = weights(hub)[0]
    hub.faults[name] = ["cut"]
    await downloader.ensure_shard(source, whole(source.path))
    assert hub.ranges
    assert all(int(line.split()[-1]) > 0 for line in hub.ranges)


async def test_a_download_that_stands_still_is_given_up_and_goes_on_from_there(
    hub: Hub, downloader: HubShardDownloader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    source = await downloader.describe(MODEL)
    name = weights(hub)[0]
    hub.faults[name] = ["stall"]
    folder = await downloader.ensure_shard(source, whole(source.path))
    assert (folder / name).read_bytes() == hub.files[name]
    assert [line for line in hub.ranges if line.startswith(name)]


async def test_a_busy_hub_is_asked_again_when_it_says(
    hub: Hub, downloader: HubShardDownloader, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(downloader._hub.cancelled, "wait", pauses.append)
    hub.faults["info"], hub.retry_after = ["429", "429"], "7"
    await downloader.describe(MODEL)
    hub.faults["info"], hub.retry_after = ["429"], "86400"
    await downloader.describe(MODEL)
    assert pauses == [7, 7, 60]


async def test_a_hub_that_is_busy_at_first_is_asked_again(
    hub: Hub, downloader: HubShardDownloader
) -> None:
    hub.faults["info"] = ["503", "429"]
    assert (await downloader.describe(MODEL)).revision == COMMIT


async def test_content_that_stays_wrong_is_never_handed_out(
    hub: Hub, downloader: HubShardDownloader
) -> None:
    source = await downloader.describe(MODEL)
    hub.faults[weights(hub)[0]] = ["wrong"] * 50
    with pytest.raises(CheckpointError, match="SHA-256"):
        await downloader.ensure_shard(source, whole(source.path))
    hub.faults.clear()
    folder = await downloader.ensure_shard(source, whole(source.path))
    assert (folder / weights(hub)[0]).read_bytes() == hub.files[weights(hub)[0]]


async def test_progress_goes_up_to_all_bytes(hub: Hub, downloader: HubShardDownloader) -> None:
    seen: list[tuple[int, int]] = []
    source = await downloader.describe(MODEL)
    downloader.on_progress = lambda progress: seen.append(
        (progress.bytes_done, progress.bytes_total)
    )
    await downloader.ensure_shard(source, whole(source.path))
    total = sum(len(hub.files[name]) for name in weights(hub))
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


async def test_offline_serves_what_an_earlier_run_left_and_says_what_is_missing(
    hub: Hub, tmp_path: Path
) -> None:
    async with HubShardDownloader(tmp_path, endpoint=hub.url) as first:
        source = await first.describe(MODEL)
        await first.ensure_shard(source, whole(source.path))
    asked = len(hub.requests)
    async with HubShardDownloader(tmp_path, endpoint="http://127.0.0.1:9", offline=True) as later:
        source = await later.describe(MODEL)
        folder = await later.ensure_shard(source, whole(source.path))
        assert (folder / weights(hub)[0]).exists()
        with pytest.raises(CheckpointError, match="not in the cache, and this node is offline"):
            await later.describe("hf:owner/other")
    assert len(hub.requests) == asked


async def test_a_hub_out_of_reach_degrades_to_what_an_earlier_run_left_and_says_so(
    hub: Hub, tmp_path: Path
) -> None:
    async with HubShardDownloader(tmp_path, endpoint=hub.url, pause=0.001) as first:
        source = await first.describe(MODEL)
        await first.ensure_shard(source, whole(source.path))
    async with HubShardDownloader(tmp_path, endpoint="http://127.0.0.1:9", pause=0.001) as later:
        source = await later.describe(MODEL)
        assert source.revision == COMMIT
        assert later.state is ResourceState.DEGRADED
        assert [(made.name, made.to) for made in degradations()] == [("hub", "the local cache")]
        folder = await later.ensure_shard(source, whole(source.path))
        assert (folder / weights(hub)[0]).exists()
        with pytest.raises(CheckpointError, match="cannot be fetched"):
            await later.describe("hf:owner/other")
    assert degradations() == ()


async def test_a_revision_is_pinned_and_an_unknown_one_named(
    hub: Hub, downloader: HubShardDownloader
) -> None:
    assert (await downloader.describe("hf:owner/model@v1")).revision == COMMIT
    with pytest.raises(CheckpointError, match="no such revision"):
        await downloader.describe("hf:owner/model@v9")


async def test_a_gated_model_asks_for_a_token_and_takes_one(hub: Hub, tmp_path: Path) -> None:
    hub.token = "opens"
    async with HubShardDownloader(tmp_path / "a", endpoint=hub.url, pause=0.001) as without:
        with pytest.raises(CheckpointError, match="token"):
            await without.describe(MODEL)
    async with HubShardDownloader(tmp_path / "b", endpoint=hub.url, token="opens") as allowed:
        assert (await allowed.describe(MODEL)).revision == COMMIT


async def test_a_repository_that_is_not_there_is_a_model_not_found(
    hub: Hub, downloader: HubShardDownloader
) -> None:
    with pytest.raises(ModelNotFound, match="owner/nothing"):
        await downloader.describe("hf:owner/nothing")


async def test_closing_ends_the_tries_at_once(hub: Hub, tmp_path: Path) -> None:
    hub.faults["info"] = ["503"] * 50
    downloader = HubShardDownloader(tmp_path, endpoint=hub.url, pause=30.0)
    await downloader.initialize()
    asking = asyncio.create_task(downloader.describe(MODEL))
    await until(lambda: len(hub.faults["info"]) < 50)
    await downloader.cleanup()
    with pytest.raises(CheckpointError, match="cannot be fetched"):
        await asyncio.wait_for(asking, 10)


async def test_one_gguf_file_is_served_and_of_several_one_must_be_named(tmp_path: Path) -> None:
    gguf = next((DATA / "tiny-gguf").glob("*.gguf")).read_bytes()
    with serve(Hub({"a.gguf": gguf})) as hub:
        async with HubShardDownloader(tmp_path, endpoint=hub.url) as downloader:
            source = await downloader.describe(MODEL)
            assert (source.weights_here, source.path.read_bytes()) == (True, gguf)
    with serve(Hub({"a.gguf": gguf, "b.gguf": gguf})) as hub:
        async with HubShardDownloader(tmp_path / "two", endpoint=hub.url) as downloader:
            with pytest.raises(
                InvalidRequest, match=r"hf:owner/model:a\.gguf, hf:owner/model:b\.gguf"
            ):
                await downloader.describe(MODEL)
            assert (await downloader.describe("hf:owner/model:b.gguf")).model_id == "b"


@pytest.mark.parametrize("file", ["../outside.safetensors", "a/b.safetensors", "x.bin", 7])
async def test_an_index_cannot_name_anything_but_safetensors_of_its_folder(
    hub: Hub, downloader: HubShardDownloader, file: object
) -> None:
    hub.files["model.safetensors.index.json"] = json.dumps(
        {"weight_map": {"model.layers.0.x": file}}
    ).encode()
    source = await downloader.describe(MODEL)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        await downloader.ensure_shard(source, whole(source.path))


@pytest.mark.parametrize(
    "name",
    [
        "hf:",
        "hf:owner",
        "hf:owner/../x",
        "hf:o/m:x.bin",
        "hf:o/m@",
        "hf:o/m/../../etc",
        "hf:o/m@/etc/x",
    ],
)
async def test_a_name_that_is_none_says_how_to_write_one(
    downloader: HubShardDownloader, name: str
) -> None:
    with pytest.raises(InvalidRequest, match="write hf:OWNER/REPO"):
        await downloader.describe(name)


@pytest.mark.parametrize("revision", ["/etc/passwd", "../../x", "", "a b"])
async def test_a_revision_that_would_lead_elsewhere_is_refused(
    hub: Hub, tmp_path: Path, revision: str
) -> None:
    async with HubShardDownloader(tmp_path, endpoint=hub.url, revision=revision) as made:
        with pytest.raises(InvalidRequest, match="is not a branch, tag or commit"):
            await made.describe(MODEL)


async def test_a_hub_whose_commit_is_a_path_is_not_believed(
    hub: Hub, downloader: HubShardDownloader
) -> None:
    hub.commit = "../../../elsewhere"
    with pytest.raises(CheckpointError, match=r"'\.\./\.\./\.\./elsewhere', which is not a hash"):
        await downloader.describe(MODEL)


async def test_the_downloader_conforms(tmp_path: Path) -> None:
    await check_resource(lambda: HubShardDownloader(tmp_path))
