"""What to fetch from a hub: names of models, and the files that a shard needs. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from exo.inference.errors import InvalidRequest
from exo.inference.shard import Shard

PREFIX: Final = "hf:"
INDEX: Final = "model.safetensors.index.json"
# The shape of a model and how to talk to it. Nothing that could be run: no *.py, no pickle.
SMALL_FILES: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    INDEX,
)
_NAME = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>\w[\w./-]*))?(:(?P<file>[\w.-]+\.gguf))?", re.ASCII
)
_LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class HubName:
    """revision: branch, tag or commit; None: the repository's main branch.
    file: one GGUF file of the repository.
    """

    repo: str
    revision: str | None = None
    file: str | None = None

    @property
    def model_id(self) -> str:
        return (self.file or self.repo.rpartition("/")[2]).removesuffix(".gguf")


def is_hub_name(model: str) -> bool:
    return model.startswith(PREFIX)


def parse(model: str) -> HubName:
    """Raises `InvalidRequest`, showing the right form."""
    match = _NAME.fullmatch(model)
    if match is None or ".." in model:
        raise InvalidRequest(
            f"{model!r} is not a model on a hub; write hf:OWNER/REPO, hf:OWNER/REPO@REVISION or"
            " hf:OWNER/REPO:FILE.gguf",
            field="model",
        )
    return HubName(match["repo"], match["revision"], match["file"])


def checked_revision(revision: str | None) -> str | None:
    """A revision from a setting. It becomes part of a path: raises `InvalidRequest` for one that
    could lead elsewhere.
    """
    if revision is not None and (
        ".." in revision or not re.fullmatch(r"\w[\w./-]*", revision, re.ASCII)
    ):
        raise InvalidRequest(f"{revision!r} is not a branch, tag or commit", field="hub-revision")
    return revision


def gguf_file(name: HubName, files: Iterable[str]) -> str | None:
    """The GGUF file to serve; None for a safetensors repository. Raises `InvalidRequest`, listing
    the choices.
    """
    there = sorted(file for file in files if file.endswith(".gguf") and "/" not in file)
    if name.file is not None:
        if name.file not in there:
            raise InvalidRequest(
                f"{name.repo} has no file {name.file!r}; there are:"
                f" {', '.join(there) or 'no GGUF files'}",
                field="model",
            )
        return name.file
    if "config.json" in files or not there:
        return None
    if len(there) > 1:
        raise InvalidRequest(
            f"{name.repo} has several GGUF files; name one:"
            f" {', '.join(f'hf:{name.repo}:{file}' for file in there)}",
            field="model",
        )
    return there[0]


def needed_files(weight_map: Mapping[str, str], shard: Shard) -> set[str]:
    """The safetensors files with tensors of the shard's layers. Embedding, norm and head belong to
    both ends.
    """
    return {file for tensor, file in weight_map.items() if _is_needed(tensor, shard)}


def _is_needed(tensor: str, shard: Shard) -> bool:
    layer = _LAYER.search(tensor)
    if layer is not None:
        return shard.start_layer <= int(layer[1]) <= shard.end_layer
    # A tied head is the embedding, so the last stage may need that as well.
    return shard.is_first_layer() or shard.is_last_layer()
