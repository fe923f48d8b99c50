"""Tokenizers from a Hugging Face folder: tokenizer.json, with what tokenizer_config.json adds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from exo.inference.checkpoints.safetensors import check_inside, read_json
from exo.inference.errors import CheckpointError
from exo.inference.text.tokenizer import Tokenizer


def from_folder(folder: Path) -> Tokenizer:
    """Raises `CheckpointError` where there is no tokenizer, or a broken one."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError("has no tokenizer.json", path=str(folder))
    from tokenizers import Tokenizer as Backend

    content = read_json(path)
    backend = _built(lambda: Backend.from_file(str(path)), path)
    settings = (
        read_json(folder / "tokenizer_config.json")
        if (folder / "tokenizer_config.json").is_file()
        else {}
    )
    added = {i: t for i, t in backend.get_added_tokens_decoder().items() if t.special}
    decoders = list(_parts(content.get("decoder"), "decoders"))
    bos_id, add_bos = _bos(backend, settings)
    return Tokenizer(
        backend,
        control={t.content: i for i, t in added.items()},
        byte_level=any(d.get("type") == "ByteLevel" for d in decoders),
        bos_id=bos_id,
        add_bos=add_bos,
        chat_template=_template(folder, settings),
        special_texts={
            k: _text(settings[k])
            for k in ("bos_token", "eos_token", "unk_token", "pad_token")
            if settings.get(k)
        },
        strip_space=any(map(_strips, decoders)),
        left_blind=frozenset(i for i, t in added.items() if t.lstrip),
        right_blind=frozenset(i for i, t in added.items() if t.rstrip),
        rest=_backend_for_the_rest(content, path),
    )


def _built(build: Callable[[], Any], path: Path) -> Any:
    try:
        return build()
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"is not a tokenizer: {error}", path=str(path)) from error


def _backend_for_the_rest(content: dict[str, Any], path: Path) -> Any:
    """The same tokenizer without the space that Metaspace puts before the first word only; None
    where it puts none.
    """
    first = [
        p
        for p in _parts(content.get("pre_tokenizer"), "pretokenizers")
        if p.get("prepend_scheme") == "first"
    ]
    if not first:
        return None
    for part in first:
        part["prepend_scheme"] = "never"
    from tokenizers import Tokenizer as Backend

    return _built(lambda: Backend.from_str(json.dumps(content)), path)


def _parts(component: Any, key: str) -> Iterator[dict[str, Any]]:
    """A component of tokenizer.json and, for a sequence, its parts."""
    if isinstance(component, dict):
        yield component
        for part in component.get(key) or ():
            yield from _parts(part, key)


def _strips(decoder: dict[str, Any]) -> bool:
    if decoder.get("type") == "Strip":
        return decoder.get("content") == " " and bool(decoder.get("start"))
    if decoder.get("type") == "Metaspace":
        return (
            decoder.get("prepend_scheme", "always") != "never"
            and decoder.get("add_prefix_space", True) is not False
        )
    return False


def _bos(backend: Any, settings: dict[str, Any]) -> tuple[int | None, bool]:
    """(bos id, whether it goes before a plain prompt): from tokenizer_config.json, otherwise from
    the file itself.
    """
    encoded = backend.encode("a", add_special_tokens=True)
    first = encoded.ids[0] if encoded.ids and encoded.special_tokens_mask[0] else None
    named = backend.token_to_id(_text(settings["bos_token"])) if settings.get("bos_token") else None
    bos_id = first if named is None else named
    asked = settings.get("add_bos_token")
    return bos_id, bos_id is not None and (first is not None if asked is None else bool(asked))


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        check_inside(path)
        return path.read_text(encoding="utf-8", errors="replace")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _text(token: Any) -> str:
    """A token in tokenizer_config.json is its text, or an object that contains it."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)
