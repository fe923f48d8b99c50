"""`Engine`: a `ModelRunner` with a life. What the runner does synchronously is a resource here:
started, cancelled, recovered, closed.

One worker thread per engine does everything that takes time (loading, forward passes, tokenizing),
so the event loop stays free and no two passes of an engine overlap. A cancelled pass stops at the
next layer and leaves the KV cache as it was.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import numpy as np

from exo.inference.arrays import Array
from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.engines.inference_engine import (
    EngineFigures,
    InferenceEngine,
    LoadProgress,
    Step,
)
from exo.inference.engines.runner import Cancel, ModelRunner, PassCancelled
from exo.inference.engines.worker import Worker
from exo.inference.errors import CheckpointError, InvalidRequest
from exo.inference.models import ModelConfig, Weights, open_weights
from exo.inference.shard import Shard
from exo.inference.text.load import load_tokenizer
from exo.inference.text.tokenizer import Tokenizer
from exo.lifecycle import ResourceState
from exo.utils.error_handling import degrade, restore

T = TypeVar("T")
# What the use of a second-best engine is called in state, metrics and logs.
DEGRADATION: Final = "engine"


class Engine(InferenceEngine):
    """runner: computes; every call to it but `figures` is made on the worker thread."""

    # Of the named engines: the runner they are made with.
    RUNNER: ClassVar[type[ModelRunner]]

    def __init__(self, runner: ModelRunner, **life: Any) -> None:
        # A recovery loads the checkpoint again, which may take minutes.
        super().__init__(**{"initialize_timeout": 600.0, **life})
        self.runner = runner
        self.shard: Shard | None = None
        self.path: Path | None = None
        self.config: ModelConfig | None = None
        # None where the checkpoint has none: such a model takes and gives token ids only.
        self.tokenizer: Tokenizer | None = None
        self._tokenizer_error: CheckpointError | None = None
        # What a recovery loads again; None before the first load and after `cleanup`.
        self._wanted: tuple[Shard, Path] | None = None
        self._worker: Worker | None = None
        # Set when the engine closes: a load or a pass that runs stops at its next tensor or layer.
        self._closing = threading.Event()
        self._marks = 0

    @property
    def figures(self) -> EngineFigures:
        return self.runner.figures

    @property
    def active(self) -> str | None:
        return None if self.shard is None else self.runner.active

    @property
    def degraded_reason(self) -> str | None:
        """Why the best engine is not in use; None when it is."""
        return self.runner.degraded_reason

    @property
    def marks(self) -> int:
        return self._marks

    def _mark(self) -> None:
        self._marks += 1

    # -- life --------------------------------------------------------------------------------------

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
            await worker.submit(self.runner.unload)
        finally:
            worker.stop()
        self.shard = self.config = self.tokenizer = self.path = None

    async def _do_health_check(self) -> bool:
        return self._worker is not None

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run on the worker thread. A cancelled caller stops waiting; a call that has not begun by
        then never does.
        """
        if self._worker is None:
            raise RuntimeError(f"{self.display_name} is not initialized")
        return await self._worker.submit(function, *arguments)

    # -- loading -----------------------------------------------------------------------------------

    async def _load_checkpoint(self, shard: Shard, path: Path) -> None:
        loop = asyncio.get_running_loop()

        def report(progress: LoadProgress) -> None:
            if self.on_progress is not None:
                loop.call_soon_threadsafe(self.on_progress, progress)

        try:
            await self._run(self._load_now, shard, path, report)
        except PassCancelled:
            await self.ensure_ready()  # the engine closes, and this raises that
            raise
        self._wanted = (shard, path)
        reason = self.runner.degraded_reason
        if reason is None:
            restore(DEGRADATION, resource=self)
        else:
            degrade(DEGRADATION, to=self.runner.active, reason=reason, resource=self)

    def _load_now(self, shard: Shard, path: Path, report: Callable[[LoadProgress], None]) -> None:
        """On the worker thread."""
        self.runner.unload()
        self.shard = None
        with open_checkpoint(path) as checkpoint:
            weights = open_weights(checkpoint)
            weights.check(shard)
            self.tokenizer, self._tokenizer_error = None, None
            try:
                self.tokenizer = load_tokenizer(checkpoint)
            except CheckpointError as error:
                self._tokenizer_error = error
            # Tens of MB of vocabulary, which the tokenizer holds by now.
            checkpoint.metadata = {
                k: v for k, v in checkpoint.metadata.items() if not isinstance(v, list)
            }
            meter = _meter(weights, shard, report)
            self.runner.load(weights, shard, partial(self._loaded_bytes, meter))
            meter.finish()
            self.config, self.path, self.shard = weights.config, path, shard

    def _loaded_bytes(self, meter: _Meter, n_bytes: int) -> None:
        if self._closing.is_set():
            raise PassCancelled
        meter.advance(n_bytes)

    # -- passes ------------------------------------------------------------------------------------

    async def _infer_batch(self, shard: Shard, steps: Sequence[Step]) -> list[Array]:
        self._check_shard(shard)
        for step in steps:
            self._check_step(step)
        if not steps:
            return []
        cancel = Cancel(self._closing, self._mark)
        try:
            return await self._run(self.runner.forward, steps, cancel)
        except asyncio.CancelledError:
            cancel.asked = True
            raise
        except PassCancelled:
            await self.ensure_ready()  # the engine closes, and this raises that
            raise

    async def _reuse_prefix(self, sequence_id: str, tokens: Sequence[int], limit: int) -> int:
        if self.shard is None:
            raise CheckpointError("no checkpoint is loaded", path=str(self.path))
        return await self._run(self.runner.reuse_prefix, sequence_id, tokens, limit)

    async def _release(self, sequence_id: str) -> None:
        if self._worker is not None:
            await self._run(self.runner.release, sequence_id)

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
            _check_tokens(values, self.config.vocab)
        elif values.ndim != 2 or values.shape[1] != self.config.hidden:
            raise InvalidRequest(
                f"values have the shape {values.shape}, not (T, {self.config.hidden})",
                field="values",
            )

    # -- text --------------------------------------------------------------------------------------

    async def _encode(self, shard: Shard, prompt: str) -> Array:
        tokenizer = self.require_tokenizer()
        return np.array(await self._run(tokenizer.encode_prompt, prompt), dtype=np.int64)

    async def _decode(self, shard: Shard, tokens: Array) -> str:
        tokenizer = self.require_tokenizer()
        return await self._run(tokenizer.decode, [int(t) for t in np.asarray(tokens).reshape(-1)])

    def require_tokenizer(self) -> Tokenizer:
        """Raises `CheckpointError` where nothing is loaded, or the checkpoint has no tokenizer that
        can be built.
        """
        if self.tokenizer is None:
            raise self._tokenizer_error or CheckpointError(
                "no checkpoint is loaded", path=str(self.path)
            )
        return self.tokenizer


def _check_tokens(values: Array, vocab: int) -> None:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InvalidRequest(
            f"values are {values.dtype}{values.shape}, not token ids (T,)", field="values"
        )
    ends = (values[0],) if len(values) == 1 else (values.min(), values.max())
    for token in map(int, ends):
        if not 0 <= token < vocab:
            raise InvalidRequest(f"token id {token} is outside 0..{vocab - 1}", field="values")


def _meter(weights: Weights, shard: Shard, report: Callable[[LoadProgress], None]) -> _Meter:
    names = weights.names(shard)
    # By where they are stored: a tied head and the embedding are one tensor.
    sizes = {(s.name, s.start): weights.n_bytes(n) for n in names for s in [weights.source(n)]}
    return _Meter(report, sum(sizes.values()), len(sizes))


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
