"""`OnnxEngine`: converts a shard once, then runs it with ONNX Runtime. All of it is on the worker
thread.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from exo.inference.engines.checkpoint_engine import Cancel, CheckpointEngine
from exo.inference.engines.inference_engine import Array, Step
from exo.inference.engines.memory import default_kv_budget
from exo.inference.engines.options import EngineOptions, WeightFormat
from exo.inference.errors import CheckpointError, UnsupportedModel
from exo.inference.models import Weights, supported_families
from exo.inference.onnx.conversion_cache import ConversionCache
from exo.inference.onnx.graph.decoder import DecoderGraph, DecoderSpec
from exo.inference.onnx.graph.shard_weights import ShardWeights, decoder_spec
from exo.inference.onnx.memory_trimming import forget_code, forget_mapped_pages, trim_heap
from exo.inference.onnx.run.embedding import Embedding, write_embedding
from exo.inference.onnx.run.sequences import Sequences
from exo.inference.onnx.run.session import ShardSession, choose_providers
from exo.inference.shard import Shard
from exo.topology.device_capabilities import device_capabilities

logger = logging.getLogger(__name__)

# Part of every cache key: raise it whenever the same checkpoint would be converted to something
# else.
CONVERSION: Final = 7


class OnnxEngine(CheckpointEngine):
    """`fields`: those of `EngineOptions`, and what every `AsyncResource` takes."""

    def __init__(self, **fields: Any) -> None:
        self.options, life = EngineOptions.split(fields)
        super().__init__(**life)
        self._format = self.options.weight_format
        self._sequences: Sequences | None = None

    @property
    def kv_tokens_total(self) -> int:
        """Tokens of KV that the budget allows; 0 before a checkpoint is loaded."""
        return self._sequences.table.budget if self._sequences else 0

    @property
    def kv_tokens_free(self) -> int:
        """What is kept for reuse counts as free."""
        if self._sequences is None:
            return 0
        table = self._sequences.table
        return max(0, table.budget - table.tokens_used(live_only=True))

    @property
    def sequences(self) -> int:
        """Live sequences."""
        return self._sequences.table.n_live if self._sequences else 0

    @property
    def max_sequences(self) -> int:
        return self.options.max_sequences

    @property
    def replays_by_step(self) -> bool:
        """Prompts and steps take other kernels; see decision 0005."""
        return True

    @property
    def evictions(self) -> int:
        """Live sequences whose KV had to go since the checkpoint was loaded."""
        return self._sequences.table.evictions if self._sequences else 0

    def _load(self, weights: Weights, shard: Shard, advance: Callable[[int], None]) -> None:
        spec = decoder_spec(weights.config, shard)
        cache = ConversionCache(self.options.conversions, self.options.cache_bytes)

        def build(folder: Path) -> None:
            convert(weights, shard, spec, self._format, folder, advance)

        gc.collect()
        trim_heap()  # what reading the header and building the tokenizer left
        forget_code()
        try:
            key = f"{weights.checkpoint.content_hash()}-{conversion_key(shard, self._format)}"
            session = self._open(cache, key, build, spec, weights)
        finally:
            # What the session maps stays readable after the files are gone.
            cache.close()
            forget_code()
        wanted = self.options.kv_budget
        budget = default_kv_budget() if wanted is None else wanted
        self._sequences = Sequences(
            session, spec, weights.config, self.options.max_sequences, budget
        )

    def _open(
        self,
        cache: ConversionCache,
        key: str,
        build: Callable[[Path], None],
        spec: DecoderSpec,
        weights: Weights,
    ) -> ShardSession:
        """Raises `UnsupportedModel` where ONNX Runtime refuses a freshly converted graph."""
        threads = self.options.threads or device_capabilities().cores
        providers = choose_providers(onnxruntime.get_available_providers())
        for fresh in (False, True):
            entry = cache.get(key, build)
            try:
                return start_session(entry, spec, weights, threads, providers)
            except Exception as error:  # onnxruntime's errors have no common root
                cache.discard(entry)
                if fresh:
                    path = str(weights.checkpoint.path)
                    message = f"onnxruntime cannot run this model: {error}"
                    raise UnsupportedModel(
                        message, path=path, supported=supported_families()
                    ) from error
        raise AssertionError("unreachable: the second round returns or raises")

    def _forward(self, steps: Sequence[Step], cancel: Cancel) -> list[Array]:
        return self._loaded().forward(steps, cancel)

    def _reuse(self, request_id: str, tokens: Sequence[int], limit: int) -> int:
        return self._loaded().reuse(request_id, np.asarray(tokens, np.int64), limit)

    def _drop(self, request_id: str) -> None:
        if self._sequences is not None:
            self._sequences.release(request_id)

    def _unload(self) -> None:
        if self._sequences is not None:
            self._sequences.close()
            self._sequences = None

    def _loaded(self) -> Sequences:
        if self._sequences is None:
            raise CheckpointError("no checkpoint is loaded", path=str(self.path))
        return self._sequences


def conversion_key(shard: Shard, weight_format: WeightFormat) -> str:
    """What besides the checkpoint's contents decides the converted files."""
    layers = f"{shard.start_layer}-{shard.end_layer}of{shard.n_layers}"
    return f"{layers}-{weight_format}-{platform.machine()}-v{CONVERSION}"


def convert(
    weights: Weights,
    shard: Shard,
    spec: DecoderSpec,
    weight_format: WeightFormat,
    folder: Path,
    advance: Callable[[int], None],
) -> None:
    """Write the shard's graph and weights to `folder`. Raises `CheckpointError`, `OSError`."""
    from exo.inference.onnx.graph.graph_writer import GraphWriter

    files = weights.checkpoint.files()
    writer = GraphWriter(folder)
    try:
        meter = _TensorMeter(weights, shard, advance)
        graph = DecoderGraph(spec, ShardWeights(weights, shard, weight_format), writer)
        graph.begin()
        if spec.first:
            write_embedding(folder, weights.raw("embed"), lambda: forget_mapped_pages(files))
        meter.embedding()
        for position, layer in enumerate(spec.layers):
            graph.layer(position)
            meter.layer(layer)
            forget_mapped_pages(files)
        graph.end()
        writer.save()
    finally:
        writer.close()
        forget_mapped_pages(files)
        trim_heap()
        forget_code()


def start_session(
    folder: Path, spec: DecoderSpec, weights: Weights, threads: int, providers: Sequence[str]
) -> ShardSession:
    """On a converted shard, tried out. Raises `OSError` and what ONNX Runtime raises."""
    config = weights.config
    with contextlib.ExitStack() as undo:
        embedding = None
        if spec.first:
            embedding = Embedding(
                folder,
                dtype=weights.raw("embed").dtype,
                width=config.hidden,
                scale=config.embed_scale,
            )
            undo.callback(embedding.close)
        session = ShardSession(
            folder, spec, config, threads=threads, providers=providers, embedding=embedding
        )
        session.try_out()
        undo.pop_all()
    return session


class _TensorMeter:
    """Reports each tensor of a part of the graph when the part is written."""

    def __init__(self, weights: Weights, shard: Shard, advance: Callable[[int], None]) -> None:
        self._weights = weights
        self._names = weights.names(shard)
        self._advance = advance

    def embedding(self) -> None:
        self._report([name for name in self._names if name == "embed"])

    def layer(self, layer: int) -> None:
        self._report([name for name in self._names if name.startswith(f"{layer}.")])

    def _report(self, names: list[str]) -> None:
        for name in names:
            self._advance(self._weights.n_bytes(name))


# Another name under which programs import it.
OnnxInferenceEngine = OnnxEngine
