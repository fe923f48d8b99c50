"""`DummyEngine`: a model that costs nothing, for tests of orchestration and to measure floors. No
weights are read.

What it answers is nonsense, but right nonsense: each token depends on every token before it and on
every layer, any split into shards gives the same, and a sequence that is not held is
`SequenceLost`. Loaded from a checkpoint it takes that one's tokenizer and sizes; from a path named
`dummy` it makes up a vocabulary of bytes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from exo.inference.engines.checkpoint_engine import Cancel, CheckpointEngine, LoadProgress, T
from exo.inference.engines.inference_engine import Array, Step
from exo.inference.errors import Overloaded, SequenceLost
from exo.inference.models import ModelConfig, RopeConfig, Weights
from exo.inference.shard import Shard
from exo.inference.text.tokenizer import Tokenizer

MODEL: Final = "dummy"
# Everything is computed modulo this prime, so that float32 carries it exactly.
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
    """A sequence: its length, and per layer the weighted sum of what the layer has seen."""

    length: int
    sums: Array  # int64 (layers, hidden)


class DummyEngine(CheckpointEngine):
    """step_seconds: how long a pass takes. kv_tokens: how many tokens of KV it pretends to have
    room for. hidden: how wide the hidden states are.
    """

    def __init__(
        self,
        *,
        step_seconds: float = 0.0,
        kv_tokens: int | None = None,
        hidden: int = HIDDEN,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.step_seconds = step_seconds
        self._kv_tokens = kv_tokens
        self._hidden = hidden
        self._spread = np.arange(1, hidden + 1)
        self._held: OrderedDict[str, _Held] = OrderedDict()  # least recently used first
        self._words = np.arange(1)

    @property
    def kv_tokens_total(self) -> int | None:
        return self._kv_tokens

    @property
    def kv_tokens_free(self) -> int | None:
        return (
            None
            if self._kv_tokens is None
            else self._kv_tokens - sum(h.length for h in self._held.values())
        )

    @property
    def sequences(self) -> int:
        return len(self._held)

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        # Microseconds of work: a hop to the worker would cost more.
        return function(*arguments)

    async def _infer_batch(self, shard: Shard, steps: Sequence[Step]) -> list[Array]:
        if self.step_seconds:
            await asyncio.sleep(self.step_seconds)
        return await super()._infer_batch(shard, steps)

    def _load_now(self, shard: Shard, path: Path, report: Callable[[LoadProgress], None]) -> None:
        if path.name == MODEL and not path.exists():
            self._unload()
            self.config = replace(CONFIG, n_layers=shard.n_layers, hidden=self._hidden)
            self.tokenizer = byte_tokenizer()
            self.path, self.shard = path, shard
        else:
            super()._load_now(shard, path, report)
            assert self.config is not None
            self.config = replace(self.config, hidden=self._hidden)
        control = set(self.tokenizer.control.values()) if self.tokenizer else set()
        # Never a control token: answers end at their maximum length.
        self._words = np.array(
            [
                i
                for i in range(self.config.vocab)
                if i not in control and i not in self.config.eos_ids
            ]
        )

    def _load(self, weights: Weights, shard: Shard, advance: Callable[[int], None]) -> None:
        pass

    def _unload(self) -> None:
        self._held.clear()

    def _drop(self, request_id: str) -> None:
        self._held.pop(request_id, None)

    def _forward(self, steps: Sequence[Step], cancel: Cancel) -> list[Array]:
        for step in steps:
            held = self._held.get(step.request_id)
            if step.position and (held is None or held.length != step.position):
                raise SequenceLost(
                    step.request_id, expected=step.position, held=held.length if held else None
                )
        self._make_room(steps)
        if all(step.position and len(step.values) == 1 for step in steps):
            return self._decode_steps(steps)
        return [self._step(step) for step in steps]

    def _decode_steps(self, steps: Sequence[Step]) -> list[Array]:
        """As `_step`, for one token of each sequence: the whole batch at once, so that the floor
        stays a floor.
        """
        shard, config = self.shard, self.config
        assert shard is not None
        assert config is not None
        held = [self._held[step.request_id] for step in steps]
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
            self._held.move_to_end(step.request_id)
        if not shard.is_last_layer():
            return np.split(x.astype(np.float32), len(steps))
        logits = self._logits(x, config.vocab)
        return [logits[i : i + (step.rows != "none")] for i, step in enumerate(steps)]

    def _step(self, step: Step) -> Array:
        shard, config = self.shard, self.config
        assert shard is not None
        assert config is not None
        if step.position == 0:
            self._held[step.request_id] = _Held(
                0, np.zeros((shard.get_layer_count(), self._hidden), np.int64)
            )
        held = self._held[step.request_id]
        self._held.move_to_end(step.request_id)
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
        return self._logits(x[first:], config.vocab)

    def _logits(self, x: Array, vocab: int) -> Array:
        """One word is far ahead, another comes second."""
        out = np.zeros((len(x), vocab), np.float32)
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
        batch = {step.request_id for step in steps}
        for request_id in [i for i in self._held if i not in batch]:
            others = sum(h.length for i, h in self._held.items() if i not in batch)
            if needed + others <= self._kv_tokens:
                break
            del self._held[request_id]


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
