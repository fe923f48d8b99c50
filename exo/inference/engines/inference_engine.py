"""`InferenceEngine`: runs one shard's layers on batches of sequences. Knows no sockets and no
sampling policy.

Each public method calls `ensure_ready()` and then the hook of its name with an underscore in front.
Compute runs off the event loop.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from exo.inference.arrays import Array
from exo.inference.errors import InvalidRequest
from exo.inference.shard import Shard
from exo.lifecycle import AsyncResource
from exo.lifecycle.faults import hang, is_hanging


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One sequence's share of one forward pass.

    values: int64 (T,) token ids for a shard with the first layer, else float32 (T, hidden).
    position: how many tokens of the sequence are in the KV cache already. 0 starts it again and
        drops what was held; a number that is not what is held raises `SequenceLost`.
    rows: which logits a shard with the last layer returns: the last row (1, vocab), all (T, vocab),
        or none (0, vocab). Other shards return hidden states (T, hidden).
    """

    sequence_id: str
    values: Array
    position: int
    rows: Literal["last", "all", "none"] = "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFigures:
    """What an engine says of its KV cache.

    kv_tokens_total: tokens that the memory budget allows; None where there is no bound.
    kv_tokens_free: tokens that still fit, for admission; what is kept for reuse counts as free.
    sequences: how many are live.
    max_sequences: how many can be live at once, whatever their length; None: no bound.
    replays_by_step: a token rounds differently in a prompt than as a step of its own, so a replay
        must repeat the steps as they were.
    """

    kv_tokens_total: int | None = None
    kv_tokens_free: int | None = None
    sequences: int = 0
    max_sequences: int | None = None
    replays_by_step: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """How far a load is. Bytes are those on disk; `seconds_left` is None while it is unknown."""

    bytes_done: int
    bytes_total: int
    tensors_done: int
    tensors_total: int
    seconds_left: float | None


class InferenceEngine(AsyncResource, ABC):
    RESOURCE_TYPE: ClassVar[str] = "inference_engine"
    # Called on the event loop while a checkpoint loads. Set it before the load.
    on_progress: Callable[[LoadProgress], None] | None = None

    # -- shards ------------------------------------------------------------------------------------

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
        """Load one more shard; those that are held go on running meanwhile. See `holds_several`.

        When cancelled, it stops at the next tensor and leaves nothing behind.
        """
        await self.ensure_ready()
        await self._add_checkpoint(shard, Path(path))

    async def drop_shard(self, shard: Shard) -> None:
        """Give one shard back: its sequences are lost. One that is not held is fine. Works in any
        state.
        """
        await self._drop_shard(shard)

    # -- passes ------------------------------------------------------------------------------------

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
        """`encode` and `infer_tensor` in one."""
        await self.ensure_ready()
        return await self._infer_prompt(request_id, shard, prompt, inference_state)

    async def infer_tensor(
        self,
        request_id: str,
        shard: Shard,
        input_data: Array,
        inference_state: dict[str, Any] | None = None,
    ) -> tuple[Array, dict[str, Any] | None]:
        """input_data: int64 (1, T) token ids or float32 (1, T, hidden).

        Returns logits (1, T, vocab) or hidden states, and the state for the next call:
        `inference_state["position"]` counts the tokens so far.
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

        Returns how many positions it holds now (0: none): fewer than `len(tokens)` and at most
        `limit`. The next step continues there. All stages of a ring must hold the same number: ask
        each, then ask each again with the least as `limit`. An engine of all layers also does this
        by itself, in a step from position 0.
        """
        await self.ensure_ready()
        return await self._reuse_prefix(request_id, tokens, len(tokens) if limit is None else limit)

    # -- figures -----------------------------------------------------------------------------------

    @property
    def active(self) -> str | None:
        """The name of the engine that computes: with `auto`, the one that runs the newest shard.
        None while nothing is loaded.
        """
        return None

    @property
    def figures(self) -> EngineFigures:
        return EngineFigures()

    @property
    def kv_tokens_total(self) -> int | None:
        return self.figures.kv_tokens_total

    @property
    def kv_tokens_free(self) -> int | None:
        return self.figures.kv_tokens_free

    @property
    def sequences(self) -> int:
        return self.figures.sequences

    @property
    def max_sequences(self) -> int | None:
        return self.figures.max_sequences

    @property
    def replays_by_step(self) -> bool:
        return self.figures.replays_by_step

    @property
    def marks(self) -> int:
        """Changes whenever the pass that runs makes progress (another layer, another chunk), so
        that a long pass is not taken for one that hangs.

        With an engine that leaves it as it is, only whole passes count as progress.
        """
        return 0

    # -- hooks -------------------------------------------------------------------------------------

    @abstractmethod
    async def _load_checkpoint(self, shard: Shard, path: Path) -> None: ...

    async def _add_checkpoint(self, shard: Shard, path: Path) -> None:
        raise NotImplementedError(f"{type(self).__name__} holds one shard at a time")

    async def _drop_shard(self, shard: Shard) -> None:
        """Default: the one shard stays until the next takes its place."""

    @abstractmethod
    async def _infer_batch(self, shard: Shard, steps: Sequence[Step]) -> list[Array]: ...

    @abstractmethod
    async def _release(self, sequence_id: str) -> None: ...

    async def _reuse_prefix(self, sequence_id: str, tokens: Sequence[int], limit: int) -> int:
        """Default: nothing is kept."""
        return 0

    async def _infer_prompt(
        self, request_id: str, shard: Shard, prompt: str, inference_state: dict[str, Any] | None
    ) -> tuple[Array, dict[str, Any] | None]:
        tokens = await self._encode(shard, prompt)
        return await self._infer_tensor(request_id, shard, tokens.reshape(1, -1), inference_state)

    async def _infer_tensor(
        self,
        request_id: str,
        shard: Shard,
        input_data: Array,
        inference_state: dict[str, Any] | None,
    ) -> tuple[Array, dict[str, Any] | None]:
        if input_data.ndim < 2 or input_data.shape[0] != 1:
            raise InvalidRequest(
                f"input_data has the shape {input_data.shape}, not (1, T, ...)", field="input_data"
            )
        position = int((inference_state or {}).get("position", 0))
        step = Step(request_id, input_data[0], position, "all")
        (result,) = await self._infer_batch(shard, [step])
        return result[None], {**(inference_state or {}), "position": position + len(step.values)}

    @abstractmethod
    async def _encode(self, shard: Shard, prompt: str) -> Array: ...

    @abstractmethod
    async def _decode(self, shard: Shard, tokens: Array) -> str: ...
