"""`Tokenizer`: text to token ids and back, from GGUF metadata or tokenizer.json, on Hugging Face's `tokenizers`.

Control tokens (`<|im_end|>` and the like) in a text are plain text unless asked for: a prompt cannot forge them.
`IncrementalDetokenizer` gives text as early as its bytes are certain, and never half a character.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from exo.inference.checkpoint import Checkpoint
from exo.inference.errors import CheckpointError

BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE: Final = "\u2581"  # how sentencepiece writes a space


def byte_of_character() -> dict[str, int]:
    """The printable characters that stand for bytes in a byte-level vocabulary (as GPT-2 chose them)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in printable}
    rest = [b for b in range(256) if b not in set(printable)]
    return table | {chr(256 + i): b for i, b in enumerate(rest)}


class Tokenizer:
    """bos_id is put before a plain prompt where `add_bos` (chat templates write their own).

    `control` maps the texts of control tokens to their ids.
    """

    def __init__(
        self,
        backend: Any,
        *,
        control: dict[str, int],
        byte_level: bool,
        bos_id: int | None = None,
        add_bos: bool = False,
        chat_template: str | None = None,
        special_texts: dict[str, str] | None = None,
    ) -> None:
        self._backend = backend
        self._backend.encode_special_tokens = True
        self.control = control
        self.byte_level = byte_level
        self.bos_id = bos_id
        self.add_bos = add_bos and bos_id is not None
        self.chat_template = chat_template
        # bos_token, eos_token, ... as chat templates see them.
        self.special_texts = special_texts or {}
        self.vocab_size = int(backend.get_vocab_size(with_added_tokens=True))
        self._control_ids = frozenset(control.values())
        self._characters = byte_of_character()
        self._bytes: dict[int, bytes] = {}
        # Longest first, so that no control token hides one that begins alike.
        names = sorted(control, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, names))) if names else None

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Token ids, without bos. `allow_special`: control tokens in the text become themselves."""
        if not allow_special or self._control_pattern is None:
            return self._plain(text)
        ids: list[int] = []
        at = 0
        for match in self._control_pattern.finditer(text):
            ids += self._plain(text[at : match.start()])
            ids.append(self.control[match.group()])
            at = match.end()
        return ids + self._plain(text[at:])

    def encode_prompt(self, text: str) -> list[int]:
        """A plain (non-chat) prompt: bos where the model wants it, no control tokens from the text."""
        ids = self.encode(text)
        return [self.bos_id, *ids] if self.add_bos and self.bos_id is not None else ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text; a broken character is U+FFFD. Ids outside the vocabulary are nothing."""
        text = b"".join(self.token_bytes(i, skip_special) for i in ids).decode("utf-8", "replace")
        return text if self.byte_level else text.removeprefix(" ")

    def token_bytes(self, token: int, skip_special: bool = True) -> bytes:
        """The bytes a token stands for; b"" for a control token if `skip_special`."""
        if token in self._control_ids:
            return b"" if skip_special else (self._backend.id_to_token(token) or "").encode()
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._read_bytes(self._backend.id_to_token(token) or "")
        return known

    def is_control(self, token: int) -> bool:
        return token in self._control_ids

    def _plain(self, text: str) -> list[int]:
        if not text:
            return []
        # A lone surrogate (from a JSON escape) is no character; the library would refuse it.
        text = text.encode("utf-8", "replace").decode("utf-8")
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def _read_bytes(self, token: str) -> bytes:
        if self.byte_level:
            try:
                return bytes(self._characters[c] for c in token)
            except KeyError:
                return token.encode()  # an added token is stored as its text
        if match := BYTE_TOKEN.fullmatch(token):
            return bytes([int(match.group(1), 16)])
        return token.replace(SPACE, " ").encode()


class IncrementalDetokenizer:
    """Text of a growing sequence of tokens: `push` each, `flush` at the end."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # Sentencepiece writes a space before the first word; it is not part of the text.
        self._strip = not tokenizer.byte_level

    def push(self, token: int) -> str:
        """The text that becomes certain with this token; may be empty."""
        return self._stripped(self._decoder.decode(self._tokenizer.token_bytes(token, self._skip_special)))

    def flush(self) -> str:
        """What is left of a character that was cut: U+FFFD or nothing."""
        return self._stripped(self._decoder.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class StopMatcher:
    """Finds stop strings in a text that comes in pieces; holds back what may become one.

    `push` returns (text that is safe to show, whether a stop string was met); the stop string and what follows it are
    never shown. After a stop `push` returns ("", True).
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(s for s in stops if s)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        if self.stopped:
            return "", True
        held = self._held + text
        found = [at for at in (held.find(s) for s in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return held[: min(found)], True
        keep = max((_overlap(held, s) for s in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """The end has come: what was held back is text after all."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` begin `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Raises `CheckpointError`: there is none, or of a kind we cannot build."""
    if checkpoint.FORMAT == "gguf":
        from exo.inference.gguf_tokenizer import from_gguf

        return from_gguf(checkpoint)
    return _from_folder(checkpoint.path)


def _from_folder(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Backend

    from exo.inference.safetensors_checkpoint import read_json

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError("has no tokenizer.json", path=str(folder))
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"is not a tokenizer: {error}", path=str(path)) from error
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    texts = {k: _text(settings[k]) for k in ("bos_token", "eos_token", "unk_token", "pad_token") if settings.get(k)}
    decoder = read_json(path).get("decoder") or {}
    prefix = backend.encode("", add_special_tokens=True).ids
    return Tokenizer(
        backend,
        control={t.content: i for i, t in backend.get_added_tokens_decoder().items() if t.special},
        byte_level="ByteLevel" in {decoder.get("type"), *(d.get("type") for d in decoder.get("decoders", ()))},
        bos_id=prefix[0] if prefix else None,
        add_bos=bool(prefix),
        chat_template=_folder_template(folder, settings),
        special_texts=texts,
    )


def _folder_template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _text(token: Any) -> str:
    """A token in tokenizer_config.json is its text or an object with it."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)
