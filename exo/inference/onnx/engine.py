"""`OnnxRunner`: converts a shard once, then runs it with ONNX Runtime; `OnnxEngine` gives it a
life.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import onnxruntime

from exo.inference.arrays import Array
from exo.inference.engines.engine import Engine
from exo.inference.engines.inference_engine import EngineFigures, Step
from exo.inference.engines.memory import default_kv_budget
from exo.inference.engines.options import EngineOptions, WeightFormat
from exo.inference.engines.runner import Cancel, ModelRunner
from exo.inference.errors import UnsupportedModel
from exo.inference.models import Weights, supported_families
from exo.inference.onnx.conversion_cache import ConversionCache
from exo.inference.onnx.graph.decoder import DecoderGraph, DecoderSpec
from exo.inference.onnx.graph.layout import KV_DTYPE
from exo.inference.onnx.graph.shard_weights import ShardWeights, decoder_spec
from exo.inference.onnx.memory_trimming import forget_code, forget_mapped_pages, trim_heap
from exo.inference.onnx.run.embedding import Embedding, write_embedding
from exo.inference.onnx.run.sequences import Sequences
from exo.inference.onnx.run.session import ShardSession, choose_providers
from exo.inference.shard import Shard
from exo.topology.device_capabilities import device_capabilities

logger = logging.getLogger(__name__)

# Part of every cache key. Raise it whenever the same checkpoint is converted to different files.
CONVERSION: Final = 7


class OnnxRunner(ModelRunner):
    """Converts a shard on its first load, and takes the converted files on later ones."""

    NAME: ClassVar[str] = "onnx"
    # 8 bit with its scales; other formats are near enough for planning.
    WEIGHT_BYTES: ClassVar[float] = 1.2
    KV_ITEM_BYTES: ClassVar[int] = KV_DTYPE().itemsize

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self.sequences: Sequences | None = None

    @property
    def figures(self) -> EngineFigures:
        figures = EngineFigures(
            kv_tokens_total=0,
            kv_tokens_free=0,
            max_sequences=self.options.max_sequences,
            replays_by_step=True,  # prompts and steps take different kernels (decision 0005)
        )
        sequences = self.sequences  # asked once: the worker thread may change it meanwhile
        if sequences is None:
            return figures
        table = sequences.table
        return replace(
            figures,
            kv_tokens_total=table.budget,
            kv_tokens_free=max(0, table.budget - table.tokens_used(live_only=True)),
            sequences=table.n_live,
        )

    @property
    def evictions(self) -> int:
        """Live sequences whose KV was evicted since the checkpoint was loaded."""
        return self.sequences.table.evictions if self.sequences else 0

    def load(self, weights: Weights, shard: Shard, advance: Callable[[int], None]) -> None:
        options = self.options
        spec = decoder_spec(weights.config, shard)
        cache = ConversionCache(options.conversions, options.cache_bytes)

        def build(folder: Path) -> None:
            convert(weights, shard, spec, options.weight_format, folder, advance)

        gc.collect()
        trim_heap()  # left by reading the header and building the tokenizer
        forget_code()
        try:
            key = f"{weights.checkpoint.content_hash()}-" + conversion_key(
                shard, options.weight_format
            )
            session = self._open(cache, key, build, spec, weights)
        finally:
            # What the session has mapped stays readable after the files are removed.
            cache.close()
            forget_code()
        budget = default_kv_budget() if options.kv_budget is None else options.kv_budget
        self.sequences = Sequences(session, spec, weights.config, options.max_sequences, budget)

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
            except Exception as error:  # onnxruntime's errors have no common base class
                cache.discard(entry)
                if fresh:
                    path = str(weights.checkpoint.path)
                    message = f"onnxruntime cannot run this model: {error}"
                    raise UnsupportedModel(
                        message, path=path, supported=supported_families()
                    ) from error
        raise AssertionError("unreachable: the second round returns or raises")

    def forward(self, steps: Sequence[Step], cancel: Cancel) -> list[Array]:
        return self._require().forward(steps, cancel)

    def reuse_prefix(self, sequence_id: str, tokens: Sequence[int], limit: int) -> int:
        return self._require().reuse(sequence_id, np.asarray(tokens, np.int64), limit)

    def release(self, sequence_id: str) -> None:
        if self.sequences is not None:
            self.sequences.release(sequence_id)

    def unload(self) -> None:
        if self.sequences is not None:
            self.sequences.close()
            self.sequences = None

    def _require(self) -> Sequences:
        assert self.sequences is not None  # the engine has checked that the shard is loaded
        return self.sequences


class OnnxEngine(Engine):
    """`fields`: those of `EngineOptions`, and what every `AsyncResource` takes."""

    RUNNER: ClassVar[type[ModelRunner]] = OnnxRunner

    def __init__(self, **fields: Any) -> None:
        options, life = EngineOptions.split(fields)
        super().__init__(OnnxRunner(options), **life)


def conversion_key(shard: Shard, weight_format: WeightFormat) -> str:
    """What, besides the contents of the checkpoint, determines the converted files."""
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
    """A session on a converted shard, tried out. Raises `OSError` and what ONNX Runtime raises."""
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
    """Reports the tensors of each part of the graph when that part is written."""

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
