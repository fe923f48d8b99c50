"""Images travel to the cluster's nodes as an OCI layout of the layers that a node lacks."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


def load(path: str) -> ModuleType:
    """A script as a module: the folders of the scripts are no packages."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


load_image = load("tests/cluster/load_image.py")


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def saved(
    layers: dict[str, bytes], *, tags: list[str] | None = None, links: dict[str, str] | None = None
) -> bytes:
    """What `docker save` writes: the layers by the names of their files, a config, a manifest."""
    everything = {
        **layers,
        **{name: layers[target.removeprefix("../")] for name, target in (links or {}).items()},
    }
    config = json.dumps(
        {"rootfs": {"diff_ids": [digest(data) for data in everything.values()]}}
    ).encode()
    manifest = [
        {"Config": "c.json", "RepoTags": tags or ["exo-node:dev"], "Layers": list(everything)}
    ]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in {
            **layers,
            "c.json": config,
            "manifest.json": json.dumps(manifest).encode(),
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return out.getvalue()


def layout(archive: bytes, held: set[str]) -> dict[str, bytes]:
    """The files of the layout that a node would get which holds some digests already."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        images = load_image.read_saved(tar)
        with tarfile.open(fileobj=out, mode="w") as written:
            load_image.write_layout(written, images, load_image.missing(images, held), tar)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        files = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        return {name: file.read() for name, file in files.items() if file is not None}


def test_a_node_that_holds_nothing_gets_every_blob_under_its_own_digest() -> None:
    files = layout(saved({"a/layer.tar": b"base", "b/layer.tar": b"code"}), set())
    blobs = {name: data for name, data in files.items() if name.startswith("blobs/")}
    assert len(blobs) == 4
    assert all(digest(data) == "sha256:" + name.rpartition("/")[2] for name, data in blobs.items())


def test_a_layer_that_the_node_holds_is_not_sent_but_still_named_by_the_manifest() -> None:
    files = layout(saved({"a/layer.tar": b"base", "b/layer.tar": b"code"}), {digest(b"base")})
    assert "blobs/" + digest(b"base").replace(":", "/") not in files
    index = json.loads(files["index.json"])["manifests"][0]
    manifest = json.loads(files["blobs/" + index["digest"].replace(":", "/")])
    assert [layer["digest"] for layer in manifest["layers"]] == [digest(b"base"), digest(b"code")]


def test_every_tag_becomes_a_full_name_in_the_index() -> None:
    archive = saved(
        {"a/layer.tar": b"x"}, tags=["exo-node:dev", "registry.example/team/exo-node:1"]
    )
    names = [
        m["annotations"]["io.containerd.image.name"]
        for m in json.loads(layout(archive, set())["index.json"])["manifests"]
    ]
    assert names == ["docker.io/library/exo-node:dev", "registry.example/team/exo-node:1"]


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("exo-node:dev", "docker.io/library/exo-node:dev"),
        ("team/exo-node:dev", "docker.io/team/exo-node:dev"),
        ("localhost/exo-node:dev", "localhost/exo-node:dev"),
        ("127.0.0.1:5000/exo-node:dev", "127.0.0.1:5000/exo-node:dev"),
    ],
)
def test_a_reference_is_completed_as_kubelet_completes_it(reference: str, name: str) -> None:
    assert load_image.full_name(reference) == name


def test_a_layer_shared_by_link_is_read_where_the_link_points() -> None:
    files = layout(saved({"a/layer.tar": b"base"}, links={"b/layer.tar": "../a/layer.tar"}), set())
    assert files["blobs/" + digest(b"base").replace(":", "/")] == b"base"


def test_compressed_layers_are_refused_so_that_the_caller_takes_another_way() -> None:
    archive = saved({"blobs/sha256/" + "0" * 64: b"gzip of something else"})
    with pytest.raises(ValueError, match="compressed"):
        layout(archive, set())
