"""Text of a growing sequence of tokens, as early as it is certain: never half a character, never
half a stop string.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from exo.inference.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """`push` each token; `flush` at the end."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # Sentencepiece writes a space before the first word; it is not part of the text.
        self._strip = tokenizer.strip_space

    def push(self, token: int) -> str:
        """The text that becomes certain with this token; may be empty."""
        return self._stripped(
            self._decoder.decode(self._tokenizer.token_bytes(token, self._skip_special))
        )

    def flush(self) -> str:
        """What is left of an incomplete character: U+FFFD or nothing."""
        return self._stripped(self._decoder.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class StopMatcher:
    """Finds stop strings in a text that comes in pieces; holds back what may become one.

    `push` returns (text that is safe to show, whether a stop string was found). The stop string and
    what follows it are never shown; after a stop, `push` returns ("", True).
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
        """The end of the text: what was held back is text after all."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` begin `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
