"""`InferenceEngine`: runs one shard's layers on batches of sequences. Knows no sockets and no
sampling policy.

Each public method calls `ensure_ready()` and then its `_`-prefixed hook. Compute runs off the event
loop.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from exo.inference.arrays import Array
from exo.inference.shard import Shard
from exo.lifecycle import AsyncResource
from exo.lifecycle.faults import hang, is_hanging


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One sequence's share of one forward pass.

    values: int64 (T,) token ids for a shard with the first layer, else float32 (T, hidden).
    position: tokens of this sequence already in the KV cache; 0 starts it anew (and drops what was
        held). Anything else than what is held raises `SequenceLost`.
    rows: which logits a shard with the last layer returns: the last row (1, vocab), all (T, vocab),
        or none (0, vocab). Other shards return hidden states (T, hidden).
    """

    request_id: str
    values: Array
    position: int
    rows: Literal["last", "all", "none"] = "last"


class InferenceEngine(AsyncResource, ABC):
    RESOURCE_TYPE: ClassVar[str] = "inference_engine"

    async def load_checkpoint(self, shard: Shard, path: str | Path) -> None:
        """Load the shard's tensors from a GGUF file or a safetensors folder; replaces what was
        loaded.
        """
        await self.ensure_ready()
        await self._load_checkpoint(shard, Path(path))

    @property
    def holds_several(self) -> bool:
        """Whether `add_checkpoint` works: more than one shard can be held, and run, at a time."""
        return False

    async def add_checkpoint(self, shard: Shard, path: str | Path) -> None:
        """As `load_checkpoint`, beside what is loaded, which goes on to run meanwhile. See
        `holds_several`.

        Cancelled, it stops at the next tensor and leaves nothing behind.
        """
        await self.ensure_ready()
        await self._add_checkpoint(shard, Path(path))

    async def drop_shard(self, shard: Shard) -> None:
        """Give one shard back: its sequences are lost. One that is not held is fine. Works in any
        state.
        """
        await self._drop_shard(shard)

    async def _add_checkpoint(self, shard: Shard, path: Path) -> None:
        raise NotImplementedError(f"{type(self).__name__} holds one shard at a time")

    async def _drop_shard(self, shard: Shard) -> None:
        """Default: the one shard stays until the next takes its place."""

    async def infer_batch(self, shard: Shard, steps: Sequence[Step]) -> list[Array]:
        """One forward pass over steps of different sequences (any lengths); one array per step, in
        order.

        A step that fails alone (`SequenceLost`) raises for the whole batch before anything is
        computed.
        """
        await self.ensure_ready()
        if is_hanging(self):
            await asyncio.to_thread(hang, self)
        return await self._infer_batch(shard, steps)

    async def infer_prompt(
        self,
        request_id: str,
        shard: Shard,
        prompt: str,
        inference_state: dict[str, Any] | None = None,
    ) -> tuple[Array, dict[str, Any] | None]:
        await self.ensure_ready()
        return await self._infer_prompt(request_id, shard, prompt, inference_state)

    async def infer_tensor(
        self,
        request_id: str,
        shard: Shard,
        input_data: Array,
        inference_state: dict[str, Any] | None = None,
    ) -> tuple[Array, dict[str, Any] | None]:
        """input_data: int64 (1, T) token ids or float32 (1, T, hidden); returns logits (1, T,
        vocab) or hidden.
        """
        await self.ensure_ready()
        return await self._infer_tensor(request_id, shard, input_data, inference_state)

    async def encode(self, shard: Shard, prompt: str) -> Array:
        await self.ensure_ready()
        return await self._encode(shard, prompt)

    async def decode(self, shard: Shard, tokens: Array) -> str:
        await self.ensure_ready()
        return await self._decode(shard, tokens)

    async def release(self, request_id: str) -> None:
        """Free the KV cache of a sequence; unknown ids are fine. Works in any state."""
        await self._release(request_id)

    async def reuse_prefix(
        self, request_id: str, tokens: Sequence[int], limit: int | None = None
    ) -> int:
        """Begin `request_id`, whose tokens are these, with the KV that an earlier sequence left
        here.

        Returns how many positions it holds now (0: none), fewer than `len(tokens)` and at most
        `limit`; the next step
        continues there. All stages of a ring must hold the same number: ask each, then each again
        with the least as `limit`. An engine of all layers also does this by itself, in a step from
        position 0.
        """
        await self.ensure_ready()
        return await self._reuse_prefix(request_id, tokens, len(tokens) if limit is None else limit)

    async def _reuse_prefix(self, request_id: str, tokens: Sequence[int], limit: int) -> int:
        """Default: nothing is kept."""
        return 0

    @property
    def kv_tokens_total(self) -> int | None:
        """Tokens of KV that the memory budget allows; None where there is no bound."""
        return None

    @property
    def kv_tokens_free(self) -> int | None:
        """Tokens of KV that still fit, for admission; what is kept for reuse counts as free."""
        return None

    @property
    def sequences(self) -> int:
        """Live sequences."""
        return 0

    @property
    def max_sequences(self) -> int | None:
        """How many sequences can be live at once, whatever their length; None where there is no
        bound.
        """
        return None

    @property
    def marks(self) -> int:
        """Differs whenever a pass that runs has got ahead (another layer, another chunk): it takes
        long, but goes on.

        An engine that never says so is judged by whole passes.
        """
        return 0

    @property
    def replays_by_step(self) -> bool:
        """Whether a token rounds otherwise in a prompt than as a step: a replay must then go as it
        went at first.
        """
        return False

    @abstractmethod
    async def _load_checkpoint(self, shard: Shard, path: Path) -> None: ...

    @abstractmethod
    async def _infer_batch(self, shard: Shard, steps: Sequence[Step]) -> list[Array]: ...

    @abstractmethod
    async def _release(self, request_id: str) -> None: ...

    @abstractmethod
    async def _infer_prompt(
        self, request_id: str, shard: Shard, prompt: str, inference_state: dict[str, Any] | None
    ) -> tuple[Array, dict[str, Any] | None]: ...

    @abstractmethod
    async def _infer_tensor(
        self,
        request_id: str,
        shard: Shard,
        input_data: Array,
        inference_state: dict[str, Any] | None,
    ) -> tuple[Array, dict[str, Any] | None]: ...

    @abstractmethod
    async def _encode(self, shard: Shard, prompt: str) -> Array: ...

    @abstractmethod
    async def _decode(self, shard: Shard, tokens: Array) -> str: ...
