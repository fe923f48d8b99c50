"""Tokenizers from GGUF metadata: byte-level BPE (`gpt2`) by its named pre-tokenizer, sentencepiece
BPE (`llama`).
"""

from __future__ import annotations

from typing import Any, Final

from exo.inference.checkpoints.checkpoint import Checkpoint
from exo.inference.errors import CheckpointError, UnsupportedModel
from exo.inference.text.tokenizer import SPACE, Tokenizer

UNKNOWN: Final = 2
CONTROL: Final = 3
USER_DEFINED: Final = 4
BYTE: Final = 6

LLAMA3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2: Final = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN: Final = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SUFFIX: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O: Final = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Value of tokenizer.ggml.pre -> the pattern that splits words. "digits": single digits first, then
# GPT-2's pattern; None: GPT-2's pattern alone.
PRE: Final = {
    "gpt-2": None,
    "gpt2": None,
    "phi-2": None,
    "mpt": None,
    "olmo": None,
    "jais": None,
    "smollm": "digits",
    "starcoder": "digits",
    "refact": "digits",
    "command-r": "digits",
    "codeshell": "digits",
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "smaug-bpe": LLAMA3,
    "dbrx": LLAMA3,
    "qwen2": QWEN2,
    "stablelm2": QWEN2,
    "megrez": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "tekken": TEKKEN,
    "gpt-4o": GPT4O,
}


def from_gguf(checkpoint: Checkpoint) -> Tokenizer:
    meta = checkpoint.metadata
    tokens = meta.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise CheckpointError("has no tokenizer (tokenizer.ggml.tokens)", path=str(checkpoint.path))
    kind = meta.get("tokenizer.ggml.model")
    if kind == "gpt2":
        backend = _byte_level(checkpoint, tokens)
    elif kind == "llama":
        backend = _sentencepiece(checkpoint, tokens)
    else:
        raise UnsupportedModel(
            f"tokenizer {kind!r}", path=str(checkpoint.path), supported=("gpt2", "llama")
        )
    types = meta.get("tokenizer.ggml.token_type") or []
    bos = meta.get("tokenizer.ggml.bos_token_id")
    template = meta.get("tokenizer.chat_template")
    control = {
        tokens[i]: i
        for i, t in enumerate(types)
        if t in {UNKNOWN, CONTROL} and i < len(tokens) and tokens[i]
    }
    return Tokenizer(
        backend,
        control=control,
        byte_level=kind == "gpt2",
        bos_id=bos if isinstance(bos, int) and 0 <= bos < len(tokens) else None,
        add_bos=bool(
            meta.get("tokenizer.ggml.add_bos_token", kind == "llama" or _looks_words_up(meta))
        ),
        chat_template=template if isinstance(template, str) else None,
        special_texts=_special_texts(meta, tokens),
        strip_space=kind == "llama" and bool(meta.get("tokenizer.ggml.add_space_prefix", True)),
        right_blind=_right_blind(meta, control) if kind == "llama" else frozenset(),
    )


def _looks_words_up(meta: Any) -> bool:
    """Llama 3 and Mistral Nemo look a whole word up before they merge. They also put bos before a
    prompt where no key says so.
    """
    pre = meta.get("tokenizer.ggml.pre")
    return isinstance(pre, str) and PRE.get(pre) in {LLAMA3, TEKKEN}


def _right_blind(meta: Any, control: dict[str, int]) -> frozenset[int]:
    """Tokens that swallow the white space after them. GGUF has no key for these; phi3's do, except
    for three of them.
    """
    if meta.get("general.architecture") != "phi3":
        return frozenset()
    return frozenset(
        i for text, i in control.items() if text not in {"<unk>", "<s>", "<|endoftext|>"}
    )


def _special_texts(meta: Any, tokens: list[str]) -> dict[str, str]:
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: meta.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {
        name: tokens[i] for name, i in ids.items() if isinstance(i, int) and 0 <= i < len(tokens)
    }


def _byte_level(checkpoint: Checkpoint, tokens: list[str]) -> Any:
    from tokenizers import Regex
    from tokenizers import Tokenizer as Backend
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.normalizers import NFC
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    pre = checkpoint.metadata.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in PRE:
        raise UnsupportedModel(
            f"pre-tokenizer {pre!r}", path=str(checkpoint.path), supported=tuple(sorted(PRE))
        )
    merges = checkpoint.metadata.get("tokenizer.ggml.merges") or []
    try:
        pairs = [_pair(merge) for merge in merges]
        whole_words = _looks_words_up(checkpoint.metadata)
        backend = Backend(
            BPE(_vocabulary(tokens), pairs, fuse_unk=False, ignore_merges=whole_words)
        )
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(
            f"the tokenizer's merges do not fit: {error}", path=str(checkpoint.path)
        ) from error
    pattern = PRE[pre]
    if pre == "qwen2":
        backend.normalizer = NFC()
    if pattern is None:
        backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    elif pattern == "digits":
        backend.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    else:
        backend.pre_tokenizer = Sequence(
            [Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    backend.decoder = Decoder()
    _add_user_defined(checkpoint, backend, tokens)
    return backend


def _sentencepiece(checkpoint: Checkpoint, tokens: list[str]) -> Any:
    """Merges are not in the file: a pair merges into a piece, and the piece's score is the rank."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE
    from tokenizers.normalizers import Prepend, Replace, Sequence

    scores = checkpoint.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise CheckpointError("the tokenizer has no scores", path=str(checkpoint.path))
    vocabulary = _vocabulary(tokens)
    unknown = checkpoint.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    name = tokens[unknown] if isinstance(unknown, int) and 0 <= unknown < len(tokens) else tokens[0]
    types = checkpoint.metadata.get("tokenizer.ggml.token_type") or []
    # No text merges into the name of one of these.
    names = {
        tokens[i] for i, t in enumerate(types) if t in {UNKNOWN, CONTROL, BYTE} and i < len(tokens)
    }
    merges = _merges_by_score(tokens, scores, vocabulary, names)
    backend = Backend(BPE(vocabulary, merges, unk_token=name, fuse_unk=True, byte_fallback=True))
    prefix = (
        [Prepend(SPACE)] if checkpoint.metadata.get("tokenizer.ggml.add_space_prefix", True) else []
    )
    backend.normalizer = Sequence([*prefix, Replace(" ", SPACE)])
    _add_user_defined(checkpoint, backend, tokens)
    return backend


def _merges_by_score(
    tokens: list[str], scores: list[float], vocabulary: dict[str, int], names: set[str]
) -> list[tuple[str, str]]:
    """Best score first. Of equal scores the one with the longer left part, as in Hugging Face's
    converter.
    """
    pieces = vocabulary.keys() - names
    ranked: list[tuple[float, int, int, int, str, str]] = []
    for i, (token, score) in enumerate(zip(tokens, scores, strict=True)):
        for cut in range(1, len(token) if token in pieces else 0):
            left, right = token[:cut], token[cut:]
            if left in pieces and right in pieces:
                ranked.append((-score, -len(left), -len(right), i, left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    """The first of equal tokens keeps the text."""
    out: dict[str, int] = {}
    for i, token in enumerate(tokens):
        out.setdefault(token, i)
    return out


def _pair(merge: str) -> tuple[str, str]:
    # The separator is the first space after the first character: a piece may begin with one.
    left, _, right = merge[1:].partition(" ")
    return merge[0] + left, right


def _add_user_defined(checkpoint: Checkpoint, backend: Any, tokens: list[str]) -> None:
    from tokenizers import AddedToken

    types = checkpoint.metadata.get("tokenizer.ggml.token_type") or []
    added = [
        tokens[i]
        for i, t in enumerate(types)
        if t == USER_DEFINED and i < len(tokens) and tokens[i]
    ]
    backend.add_tokens([AddedToken(t, normalized=False, special=False) for t in added])
