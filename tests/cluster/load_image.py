"""load_image.py --nodes a,b IMAGE...: bring images from the Docker engine into kind's nodes, only
the layers they lack.

`kind load` sends every layer of an image each time. A change of our code is one small layer of
many, so this asks each node's containerd what it holds, and sends the rest as an OCI layout.
Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

CTR = ("ctr", "--namespace", "k8s.io")
OCI = "application/vnd.oci.image"


@dataclass(frozen=True)
class Blob:
    """A piece of content by its digest: either bytes at hand, or a file inside the saved image."""

    digest: str
    size: int
    data: bytes | None = None
    member: str | None = None


@dataclass(frozen=True)
class Image:
    """One image as an OCI manifest: its blobs (layers, config,
    manifest) and the names it goes by.
    """

    names: tuple[str, ...]
    blobs: tuple[Blob, ...]
    manifest: Blob


def of_bytes(data: bytes) -> Blob:
    return Blob("sha256:" + hashlib.sha256(data).hexdigest(), len(data), data=data)


def full_name(reference: str) -> str:
    """The name under which kubelet asks for it: `exo-node:dev` ->
    `docker.io/library/exo-node:dev`.
    """
    first, slash, _ = reference.partition("/")
    if not slash:
        return f"docker.io/library/{reference}"
    return (
        reference
        if "." in first or ":" in first or first == "localhost"
        else f"docker.io/{reference}"
    )


def read_saved(saved: tarfile.TarFile) -> list[Image]:
    """The images of what `docker save` wrote. Raises ValueError where layers are compressed
    (engines from 29 on).
    """
    images = []
    for entry in _json(saved, "manifest.json"):
        config = of_bytes(_bytes(saved, entry["Config"]))
        diff_ids = json.loads(config.data or b"")["rootfs"]["diff_ids"]
        layers = []
        for member, digest in zip(entry["Layers"], diff_ids, strict=True):
            info = saved.getmember(member)
            target = saved.getmember(_target(info)) if info.issym() or info.islnk() else info
            stored = target.name.rpartition("sha256/")[2]
            if "blobs/" in target.name and digest != f"sha256:{stored}":
                raise ValueError("layers are compressed")
            layers.append(Blob(digest, target.size, member=target.name))
        manifest = of_bytes(json.dumps(_manifest(config, layers), sort_keys=True).encode())
        names = tuple(full_name(tag) for tag in entry["RepoTags"] or ())
        images.append(Image(names, (*layers, config, manifest), manifest))
    return images


def _target(info: tarfile.TarInfo) -> str:
    """The file that a layer shared between images points to: `../ID/layer.tar` from inside a
    folder.
    """
    return info.linkname.removeprefix("../")


def _bytes(saved: tarfile.TarFile, name: str) -> bytes:
    file = saved.extractfile(name)
    assert file is not None
    return file.read()


def _json(saved: tarfile.TarFile, name: str) -> Any:
    return json.loads(_bytes(saved, name))


def _manifest(config: Blob, layers: Iterable[Blob]) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": {
            "mediaType": f"{OCI}.config.v1+json",
            "digest": config.digest,
            "size": config.size,
        },
        "layers": [
            {"mediaType": f"{OCI}.layer.v1.tar", "digest": b.digest, "size": b.size} for b in layers
        ],
    }


def missing(images: Iterable[Image], held: set[str]) -> list[Blob]:
    """What a node that holds some content still needs, each blob once."""
    needed = {
        blob.digest: blob for image in images for blob in image.blobs if blob.digest not in held
    }
    return list(needed.values())


def write_layout(
    out: tarfile.TarFile, images: Iterable[Image], blobs: Iterable[Blob], saved: tarfile.TarFile
) -> None:
    """An OCI layout that names all images and carries some of their blobs."""
    index = [
        {
            "mediaType": f"{OCI}.manifest.v1+json",
            "digest": image.manifest.digest,
            "size": image.manifest.size,
            "annotations": {"io.containerd.image.name": name},
        }
        for image in images
        for name in image.names
    ]
    _add(out, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
    _add(out, "index.json", json.dumps({"schemaVersion": 2, "manifests": index}).encode())
    for blob in blobs:
        name = "blobs/" + blob.digest.replace(":", "/")
        if blob.data is not None:
            _add(out, name, blob.data)
        else:
            info = tarfile.TarInfo(name)
            info.size = blob.size
            out.addfile(info, saved.extractfile(blob.member or ""))


def _add(out: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    out.addfile(info, io.BytesIO(data))


def held_by(node: str) -> set[str]:
    """Digests of the content of a node's containerd."""
    command = ["docker", "exec", node, *CTR, "content", "ls", "-q"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def send(node: str, images: list[Image], path: str) -> int:
    """Bring the images into one node; returns the number of bytes that it lacked."""
    command = ["docker", "exec", "-i", node, *CTR, "images", "import", "--all-platforms", "-"]
    with tarfile.open(path) as saved:  # one reader per thread
        blobs = missing(images, held_by(node))
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as ctr:
            assert ctr.stdin is not None
            assert ctr.stderr is not None
            try:
                with tarfile.open(fileobj=ctr.stdin, mode="w|") as out:
                    write_layout(out, images, blobs, saved)
                ctr.stdin.close()
            except BrokenPipeError:
                pass  # its own words say why
            words = ctr.stderr.read().decode()
        if ctr.returncode != 0:
            raise SystemExit(f"error: {node} did not take the images: {words.strip()}")
    return sum(blob.size for blob in blobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", required=True, type=lambda text: text.split(","))
    parser.add_argument("images", nargs="+")
    options = parser.parse_args()
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        subprocess.run(["docker", "save", "-o", file.name, *options.images], check=True)
        try:
            with tarfile.open(file.name) as saved:
                images = read_saved(saved)
        except ValueError:
            sys.exit(3)  # the caller has another way
        with ThreadPoolExecutor(max_workers=len(options.nodes)) as pool:
            sizes = list(pool.map(lambda node: send(node, images, file.name), options.nodes))
    for node, size in zip(options.nodes, sizes, strict=True):
        sys.stdout.write(f"{node}: {size / 2**20:.1f} MiB sent\n")


if __name__ == "__main__":
    main()
