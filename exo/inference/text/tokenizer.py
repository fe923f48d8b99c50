"""`Tokenizer`: text to token ids and back, on Hugging Face's `tokenizers`.

Control tokens (`<|im_end|>` and the like) in a text are plain text unless asked for, so a prompt
cannot forge them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE: Final = "\u2581"  # how sentencepiece writes a space
# What the library counts as white space next to a token that swallows it; Python counts four more.
WHITE: Final = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def byte_of_character() -> dict[str, int]:
    """The printable characters that stand for bytes in a byte-level vocabulary, as GPT-2 chose
    them.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in printable}
    rest = [b for b in range(256) if b not in set(printable)]
    return table | {chr(256 + i): b for i, b in enumerate(rest)}


class Tokenizer:
    """bos_id: put before a plain prompt where `add_bos`; chat templates write their own.
    control: texts of control tokens -> their ids.
    left_blind, right_blind: those control tokens that swallow the white space before or after them.
    strip_space: a decoded text begins with a space that is not part of it.
    rest: the backend for text after a control token, where that is encoded differently from text at
        the beginning.
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
        strip_space: bool | None = None,
        left_blind: frozenset[int] = frozenset(),
        right_blind: frozenset[int] = frozenset(),
        rest: Any = None,
    ) -> None:
        self._backend = backend
        self._rest = backend if rest is None else rest
        self._backend.encode_special_tokens = self._rest.encode_special_tokens = True
        self.strip_space = not byte_level if strip_space is None else strip_space
        self._left_blind, self._right_blind = left_blind, right_blind
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
        # Longest first, so that no control token hides a longer one with the same beginning.
        names = sorted(control, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, names))) if names else None

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Token ids, without bos. `allow_special`: control tokens in the text become themselves."""
        if not allow_special or self._control_pattern is None:
            return self._plain(text, self._backend)
        texts: list[str] = []
        controls: list[int] = []
        at = 0
        for match in self._control_pattern.finditer(text):
            texts.append(text[at : match.start()])
            controls.append(self.control[match.group()])
            at = match.end()
        return self.encode_around([*texts, text[at:]], controls)

    def encode_around(self, texts: Sequence[str], controls: Sequence[int]) -> list[int]:
        """Ids of plain texts with a control token between each two of them: one text more than
        controls.
        """
        ids: list[int] = []
        for k, text in enumerate(texts):
            if k and controls[k - 1] in self._right_blind:
                text = text.lstrip(WHITE)
            if k < len(controls) and controls[k] in self._left_blind:
                text = text.rstrip(WHITE)
            ids += self._plain(text, self._rest if k else self._backend)
            ids += controls[k : k + 1]
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """A plain (non-chat) prompt: bos where the model wants it, and no control tokens from the
        text.
        """
        ids = self.encode(text)
        return [self.bos_id, *ids] if self.add_bos and self.bos_id is not None else ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """A broken character becomes U+FFFD. Ids outside the vocabulary have no text."""
        text = b"".join(self.token_bytes(i, skip_special) for i in ids).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strip_space else text

    def token_bytes(self, token: int, skip_special: bool = True) -> bytes:
        """The bytes a token stands for; b"" for a control token if `skip_special`."""
        if token in self._control_ids:
            return b"" if skip_special else (self._backend.id_to_token(token) or "").encode()
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._read_bytes(self._backend.id_to_token(token) or "")
        return known

    @staticmethod
    def _plain(text: str, backend: Any) -> list[int]:
        if not text:
            return []
        # A lone surrogate (from a JSON escape) is not a character; the library would refuse it.
        text = text.encode("utf-8", "replace").decode("utf-8")
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
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
