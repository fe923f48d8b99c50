"""`CheckpointEngine`: what the engines that run real checkpoints share. Subclasses compute,
synchronously.

One worker thread per engine does all that takes time (loading, forward passes, tokenizing), so the
event loop stays free and no two passes of an engine overlap. A cancelled pass stops at the next
layer and leaves the KV cache as it was.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from exo.inference.arrays import Array
from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.engines.inference_engine import InferenceEngine, Step
from exo.inference.engines.worker import Worker
from exo.inference.errors import CheckpointError, InvalidRequest
from exo.inference.models import ModelConfig, Weights, open_weights
from exo.inference.shard import Shard
from exo.inference.text.load import load_tokenizer
from exo.inference.text.tokenizer import Tokenizer
from exo.lifecycle import ResourceState

T = TypeVar("T")


class PassCancelled(Exception):
    """A forward pass noticed, between two layers, that nobody waits for it any more."""


class Cancel:
    """Whether a pass should stop: its caller has gone, or the engine closes. Call it between
    layers.

    mark: told of each call, as a sign that the pass goes on.
    """

    def __init__(self, closing: threading.Event, mark: Callable[[], None]) -> None:
        self.asked = False
        self._closing = closing
        self._mark = mark

    def __call__(self) -> None:
        """Raises `PassCancelled` when it should."""
        self._mark()
        if self.asked or self._closing.is_set():
            raise PassCancelled


class CheckpointEngine(InferenceEngine):
    """Subclasses fill `_load`, `_forward`, `_drop` and `_unload`; all run on the worker thread, one
    at a time.

    `on_progress` (see `LoadProgress`) is called on the event loop while a checkpoint loads; set it
    before.
    """

    def __init__(self, **options: Any) -> None:
        # A recovery loads the checkpoint again, which takes what it takes.
        super().__init__(**{"initialize_timeout": 600.0, **options})
        # What a recovery is to load again; None before the first load and after `cleanup`.
        self._wanted: tuple[Shard, Path] | None = None
        self.on_progress: Callable[[LoadProgress], None] | None = None
        self.shard: Shard | None = None
        self.path: Path | None = None
        self.config: ModelConfig | None = None
        # None where the checkpoint has none: such a model answers to token ids only.
        self.tokenizer: Tokenizer | None = None
        self._tokenizer_error: CheckpointError | None = None
        self._worker: Worker | None = None
        # Set when the engine closes: a load or a pass in flight stops at its next tensor or layer.
        self._closing = threading.Event()
        self._marks = 0

    # What an engine is made of.

    @abstractmethod
    def _load(self, weights: Weights, shard: Shard, advance: Callable[[int], None]) -> None:
        """Take the shard's weights; call `advance(bytes on disk)` after each tensor. The checkpoint
        closes after.
        """

    @abstractmethod
    def _forward(self, steps: Sequence[Step], cancel: Cancel) -> list[Array]:
        """One pass. Raises `SequenceLost` before computing; `PassCancelled` between layers, the KV
        unchanged.
        """

    @abstractmethod
    def _drop(self, request_id: str) -> None:
        """Forget a sequence."""

    def _reuse(self, request_id: str, tokens: Sequence[int], limit: int) -> int:
        """See `reuse_prefix`; default: nothing is kept."""
        return 0

    def _unload(self) -> None:
        """Give weights and caches back; safe when nothing is loaded."""

    # Lifecycle.

    async def _do_initialize(self) -> None:
        self._closing = threading.Event()
        self._worker = Worker(f"engine-{self.resource_id}")
        if self._wanted is not None:
            await self._load_checkpoint(*self._wanted)

    async def _do_cleanup(self) -> None:
        if self.state is ResourceState.CLOSING:
            self._wanted = None
        worker, self._worker = self._worker, None
        if worker is None:
            return
        self._closing.set()
        try:
            await worker.submit(self._unload)
        finally:
            worker.stop()
        self.shard = self.config = self.tokenizer = self.path = None

    async def _do_health_check(self) -> bool:
        return self._worker is not None

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run on the worker thread; a cancelled caller stops waiting, and what had not begun never
        does.
        """
        if self._worker is None:
            raise RuntimeError(f"{self.display_name} is not initialized")
        return await self._worker.submit(function, *arguments)

    # Hooks of InferenceEngine.

    async def _load_checkpoint(self, shard: Shard, path: Path) -> None:
        loop = asyncio.get_running_loop()

        def report(progress: LoadProgress) -> None:
            if self.on_progress is not None:
                loop.call_soon_threadsafe(self.on_progress, progress)

        try:
            await self._run(self._load_now, shard, path, report)
        except PassCancelled:
            await self.ensure_ready()  # it closes: says so
            raise
        self._wanted = (shard, path)

    def _load_now(self, shard: Shard, path: Path, report: Callable[[LoadProgress], None]) -> None:
        self._unload()
        self.shard = None
        with open_checkpoint(path) as checkpoint:
            weights = open_weights(checkpoint)
            weights.check(shard)
            self.tokenizer, self._tokenizer_error = None, None
            try:
                self.tokenizer = load_tokenizer(checkpoint)
            except CheckpointError as error:
                self._tokenizer_error = error
            # Tens of MB of vocabulary, which the tokenizer has now.
            checkpoint.metadata = {
                k: v for k, v in checkpoint.metadata.items() if not isinstance(v, list)
            }
            names = weights.names(shard)
            # A tied head is the embedding: one tensor.
            sizes = {
                (s.name, s.start): weights.n_bytes(n) for n in names for s in [weights.source(n)]
            }
            meter = _Meter(report, sum(sizes.values()), len(sizes))
            self._load(weights, shard, partial(self._loaded_bytes, meter))
            meter.finish()
            self.config, self.path, self.shard = weights.config, path, shard

    def _loaded_bytes(self, meter: _Meter, n_bytes: int) -> None:
        if self._closing.is_set():
            raise PassCancelled
        meter.advance(n_bytes)

    async def _infer_batch(self, shard: Shard, steps: Sequence[Step]) -> list[Array]:
        self._check_shard(shard)
        for step in steps:
            self._check_step(step)
        if not steps:
            return []
        cancel = Cancel(self._closing, self._mark)
        try:
            return await self._run(self._forward, steps, cancel)
        except asyncio.CancelledError:
            cancel.asked = True
            raise
        except PassCancelled:
            await self.ensure_ready()  # it closes: says so
            raise

    @property
    def marks(self) -> int:
        return self._marks

    def _mark(self) -> None:
        self._marks += 1

    async def _reuse_prefix(self, request_id: str, tokens: Sequence[int], limit: int) -> int:
        return await self._run(self._reuse, request_id, tokens, limit)

    async def _release(self, request_id: str) -> None:
        if self._worker is not None:
            await self._run(self._drop, request_id)

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
        """`inference_state["position"]`: tokens before these; returned advanced."""
        if input_data.ndim < 2 or input_data.shape[0] != 1:
            raise InvalidRequest(
                f"input_data has the shape {input_data.shape}, not (1, T, ...)", field="input_data"
            )
        position = int((inference_state or {}).get("position", 0))
        step = Step(request_id, input_data[0], position, "all")
        (result,) = await self._infer_batch(shard, [step])
        return result[None], {**(inference_state or {}), "position": position + len(step.values)}

    async def _encode(self, shard: Shard, prompt: str) -> Array:
        tokenizer = self.require_tokenizer()
        return np.array(await self._run(tokenizer.encode_prompt, prompt), dtype=np.int64)

    async def _decode(self, shard: Shard, tokens: Array) -> str:
        tokenizer = self.require_tokenizer()
        return await self._run(tokenizer.decode, [int(t) for t in np.asarray(tokens).reshape(-1)])

    # Checks.

    def require_tokenizer(self) -> Tokenizer:
        """Raises `CheckpointError` where nothing is loaded or the checkpoint has no tokenizer we
        can build.
        """
        if self.tokenizer is None:
            raise self._tokenizer_error or CheckpointError(
                "no checkpoint is loaded", path=str(self.path)
            )
        return self.tokenizer

    def _check_shard(self, shard: Shard) -> None:
        if self.shard != shard:
            raise InvalidRequest(f"{shard} was asked for, {self.shard} is loaded", field="shard")

    def _check_step(self, step: Step) -> None:
        assert self.config is not None  # _check_shard has passed
        assert self.shard is not None
        values = step.values
        if len(values) == 0 or step.position < 0:
            raise InvalidRequest(
                "a step needs at least one token and a position from 0 on", field="values"
            )
        if step.position + len(values) > self.config.context_length:
            message = (
                f"{step.position + len(values)} tokens do not fit the window of"
                f" {self.config.context_length}"
            )
            raise InvalidRequest(message, field="values")
        if self.shard.is_first_layer():
            if values.ndim != 1 or values.dtype.kind not in "iu":
                raise InvalidRequest(
                    f"values are {values.dtype}{values.shape}, not token ids (T,)", field="values"
                )
            ends = (values[0],) if len(values) == 1 else (values.min(), values.max())
            for token in map(int, ends):
                if not 0 <= token < self.config.vocab:
                    raise InvalidRequest(
                        f"token id {token} is outside 0..{self.config.vocab - 1}", field="values"
                    )
        elif values.ndim != 2 or values.shape[1] != self.config.hidden:
            raise InvalidRequest(
                f"values have the shape {values.shape}, not (T, {self.config.hidden})",
                field="values",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """How far a load is. Bytes are those on disk; `seconds_left` is None until it can be told."""

    bytes_done: int
    bytes_total: int
    tensors_done: int
    tensors_total: int
    seconds_left: float | None


class _Meter:
    """Counts what was loaded; reports at most ten times a second, and at the end."""

    def __init__(
        self, report: Callable[[LoadProgress], None], n_bytes: int, n_tensors: int
    ) -> None:
        self._report = report
        self._total = (n_bytes, n_tensors)
        self._bytes = self._tensors = 0
        self._begun = self._last = time.monotonic()

    def advance(self, n_bytes: int) -> None:
        self._bytes += n_bytes
        self._tensors += 1
        if time.monotonic() - self._last >= 0.1:
            self._say()

    def finish(self) -> None:
        self._bytes, self._tensors = self._total
        self._say()

    def _say(self) -> None:
        self._last = time.monotonic()
        left = (
            (self._last - self._begun) * (self._total[0] - self._bytes) / self._bytes
            if self._bytes
            else None
        )
        self._report(
            LoadProgress(
                bytes_done=self._bytes,
                bytes_total=self._total[0],
                tensors_done=self._tensors,
                tensors_total=self._total[1],
                seconds_left=left,
            )
        )
