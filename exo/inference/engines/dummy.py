"""`DummyEngine`: a model that costs nothing, for tests of nodes and rings and to measure lower
bounds. No weights are read.

Its answers are nonsense, but consistent: each token depends on every token before it and on every
layer, any split into shards gives the same answer, and a sequence that is not held raises
`SequenceLost`. Loaded from a checkpoint, it takes that one's tokenizer and sizes; from a path named
`dummy`, it has a vocabulary of bytes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from exo.inference.arrays import Array
from exo.inference.engines.engine import Engine, T
from exo.inference.engines.inference_engine import EngineFigures, LoadProgress, Step
from exo.inference.engines.options import EngineOptions
from exo.inference.engines.runner import Cancel, ModelRunner
from exo.inference.errors import Overloaded, SequenceLost
from exo.inference.models import ModelConfig, RopeConfig, Weights
from exo.inference.shard import Shard
from exo.inference.text.tokenizer import Tokenizer

MODEL: Final = "dummy"
# Everything is computed modulo this prime, so that float32 holds it exactly.
PRIME: Final = 4093
HIDDEN: Final = 8
CONTROL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONFIG: Final = ModelConfig(
    family=MODEL,
    n_layers=8,
    hidden=HIDDEN,
    heads=1,
    kv_heads=1,
    head_dim=HIDDEN,
    ffn=HIDDEN,
    vocab=256 + len(CONTROL),
    context_length=8192,
    norm_eps=1e-5,
    rope=RopeConfig(dims=HIDDEN),
    tied=True,
    bos_id=1,
    eos_ids=(2,),
)


@dataclass(slots=True)
class _Held:
    """A sequence: its length and, per layer, the weighted sum of what the layer has seen."""

    length: int
    sums: Array  # int64 (layers, hidden)


class DummyRunner(ModelRunner):
    """kv_tokens: how many tokens of KV it pretends to have room for; None: any number.
    hidden: how wide the hidden states are.
    """

    NAME: ClassVar[str] = "dummy"
    WEIGHT_BYTES: ClassVar[float] = 0.0
    KV_ITEM_BYTES: ClassVar[int] = 0

    def __init__(
        self, options: EngineOptions, *, kv_tokens: int | None = None, hidden: int = HIDDEN
    ) -> None:
        super().__init__(options)
        self.hidden = hidden
        self._spread = np.arange(1, hidden + 1)
        self._kv_tokens = kv_tokens
        self._shard: Shard | None = None
        self._vocab = 0
        self._held: OrderedDict[str, _Held] = OrderedDict()  # least recently used first
        self._words = np.arange(1)

    @property
    def figures(self) -> EngineFigures:
        total, used = self._kv_tokens, sum(held.length for held in self._held.values())
        return EngineFigures(
            kv_tokens_total=total,
            kv_tokens_free=None if total is None else total - used,
            sequences=len(self._held),
        )

    def load(self, weights: Weights, shard: Shard, advance: Callable[[int], None]) -> None:
        self.begin(shard, weights.config.vocab, weights.config.eos_ids)

    def begin(self, shard: Shard, vocab: int, never: Collection[int]) -> None:
        """never: token ids that it does not answer, so that answers end at their maximum length."""
        self._shard, self._vocab = shard, vocab
        self._words = np.array([token for token in range(vocab) if token not in never])

    def unload(self) -> None:
        self._held.clear()

    def release(self, sequence_id: str) -> None:
        self._held.pop(sequence_id, None)

    def forward(self, steps: Sequence[Step], cancel: Cancel) -> list[Array]:
        for step in steps:
            held = self._held.get(step.sequence_id)
            if step.position and (held is None or held.length != step.position):
                raise SequenceLost(
                    step.sequence_id, expected=step.position, held=held.length if held else None
                )
        self._make_room(steps)
        if all(step.position and len(step.values) == 1 for step in steps):
            return self._decode_steps(steps)
        return [self._step(step) for step in steps]

    def _decode_steps(self, steps: Sequence[Step]) -> list[Array]:
        """As `_step`, for one token of each sequence, but the whole batch at once to keep the cost
        low.
        """
        shard = self._shard
        assert shard is not None  # the engine has checked that it is loaded
        held = [self._held[step.sequence_id] for step in steps]
        x = np.concatenate([step.values for step in steps]).astype(np.int64)
        if shard.is_first_layer():
            x = (x[:, None] * self._spread + 7) % PRIME
        places = np.array([[step.position + 1] for step in steps])
        sums = np.stack([each.sums for each in held])
        for i in range(shard.get_layer_count()):
            now = sums[:, i]
            now += x * places
            now %= PRIME
            x = (x * 31 + now * 17 + (shard.start_layer + i)) % PRIME
        for each, step, new in zip(held, steps, sums, strict=True):
            each.sums, each.length = new, each.length + 1
            self._held.move_to_end(step.sequence_id)
        if not shard.is_last_layer():
            return np.split(x.astype(np.float32), len(steps))
        logits = self._logits(x)
        return [logits[i : i + (step.rows != "none")] for i, step in enumerate(steps)]

    def _step(self, step: Step) -> Array:
        shard = self._shard
        assert shard is not None  # the engine has checked that it is loaded
        if step.position == 0:
            self._held[step.sequence_id] = _Held(
                0, np.zeros((shard.get_layer_count(), self.hidden), np.int64)
            )
        held = self._held[step.sequence_id]
        self._held.move_to_end(step.sequence_id)
        x = step.values.astype(np.int64)
        if shard.is_first_layer():
            x = (x[:, None] * self._spread + 7) % PRIME
        places = np.arange(step.position + 1, step.position + 1 + len(x))[:, None]
        for i in range(shard.get_layer_count()):
            sums = (held.sums[i] + np.cumsum(x * places % PRIME, axis=0)) % PRIME
            held.sums[i] = sums[-1]
            x = (x * 31 + sums * 17 + shard.start_layer + i) % PRIME
        held.length += len(step.values)
        if not shard.is_last_layer():
            return x.astype(np.float32)
        first = {"last": len(x) - 1, "all": 0, "none": len(x)}[step.rows]
        return self._logits(x[first:])

    def _logits(self, x: Array) -> Array:
        """One token is far ahead, another one comes second."""
        out = np.zeros((len(x), self._vocab), np.float32)
        for row, (a, b) in enumerate(x[:, :2]):
            out[row, self._words[b % len(self._words)]] = 18.0
            out[row, self._words[a % len(self._words)]] = 20.0
        return out

    def _make_room(self, steps: Sequence[Step]) -> None:
        if self._kv_tokens is None:
            return
        needed = sum(step.position + len(step.values) for step in steps)
        if needed > self._kv_tokens:
            raise Overloaded(f"the KV cache has no room for {needed} tokens")
        batch = {step.sequence_id for step in steps}
        for sequence_id in [i for i in self._held if i not in batch]:
            others = sum(h.length for i, h in self._held.items() if i not in batch)
            if needed + others <= self._kv_tokens:
                break
            del self._held[sequence_id]


class DummyEngine(Engine):
    """step_seconds: how long a pass takes. kv_tokens, hidden: see `DummyRunner`."""

    RUNNER: ClassVar[type[ModelRunner]] = DummyRunner
    runner: DummyRunner

    def __init__(
        self,
        *,
        step_seconds: float = 0.0,
        kv_tokens: int | None = None,
        hidden: int = HIDDEN,
        **fields: Any,
    ) -> None:
        options, life = EngineOptions.split(fields)
        super().__init__(DummyRunner(options, kv_tokens=kv_tokens, hidden=hidden), **life)
        self.step_seconds = step_seconds

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        # Microseconds of work: going to the worker and back would cost more.
        return function(*arguments)

    async def _infer_batch(self, shard: Shard, steps: Sequence[Step]) -> list[Array]:
        if self.step_seconds:
            await asyncio.sleep(self.step_seconds)
        return await super()._infer_batch(shard, steps)

    def _load_now(self, shard: Shard, path: Path, report: Callable[[LoadProgress], None]) -> None:
        if path.name == MODEL and not path.exists():
            self.runner.unload()
            self.config = replace(CONFIG, n_layers=shard.n_layers, hidden=self.runner.hidden)
            self.tokenizer = byte_tokenizer()
            self.path, self.shard = path, shard
        else:
            super()._load_now(shard, path, report)
            assert self.config is not None
            self.config = replace(self.config, hidden=self.runner.hidden)
        control = set(self.tokenizer.control.values()) if self.tokenizer else set()
        self.runner.begin(shard, self.config.vocab, {*control, *self.config.eos_ids})


def byte_tokenizer() -> Tokenizer:
    """Control tokens, then one token per byte; ChatML for chats."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    from exo.inference.text.tokenizer import byte_of_character

    characters = sorted(byte_of_character().items(), key=lambda item: item[1])
    names = [*CONTROL, *(c for c, _ in characters)]
    backend = Backend(BPE({name: i for i, name in enumerate(names)}, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    return Tokenizer(
        backend, control={name: i for i, name in enumerate(CONTROL)}, byte_level=True, bos_id=1
    )
