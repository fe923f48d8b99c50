"""`ShardSession`: an ONNX Runtime session over a converted shard, with everything bound in place.
Knows no sequences.

A decode step copies its token ids and lengths in and its logits out; keys and values are appended
where they are. Bindings are kept, so that a step of the same slots binds nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from exo.inference.arrays import Array
from exo.inference.models import ModelConfig
from exo.inference.onnx.graph.decoder import DecoderSpec
from exo.inference.onnx.graph.layout import MODEL_FILE, WEIGHTS_FILE
from exo.inference.onnx.graph.shard_weights import rotary_caches
from exo.inference.onnx.memory_trimming import forget_mapped_pages, trim_heap
from exo.inference.onnx.run.embedding import Embedding
from exo.inference.onnx.run.kv_buffers import KvBuffers

CPU: Final = "CPUExecutionProvider"
# In order of preference; only those that this onnxruntime was built with are used.
PROVIDERS: Final = ("CUDAExecutionProvider", CPU)
# Decode bindings that are kept, one for each recent composition of a batch.
MAX_BINDINGS: Final = 32


def available_providers() -> list[str]:
    return list(onnxruntime.get_available_providers())


def choose_providers(available: Sequence[str]) -> list[str]:
    """CUDA where there is one, and always the CPU."""
    return [name for name in PROVIDERS if name in available or name == CPU]


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """Arrays that the session reads from and writes to. Change them in place, then run."""

    io: Any
    values: Array
    lengths: Array  # seqlens_k: tokens of each row after the step, minus 1
    total: Array
    rows: Array
    result: Array


class ShardSession:
    """Raises what ONNX Runtime raises where the graph cannot be loaded or run. One thread at a
    time.

    embedding: of a shard with the first layer; the session closes it.
    """

    def __init__(
        self,
        folder: Path,
        spec: DecoderSpec,
        config: ModelConfig,
        *,
        threads: int,
        providers: Sequence[str] = (CPU,),
        embedding: Embedding | None = None,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if not (spec.first and spec.last):
            # Threads spin from operator to operator, and in a whole model (whose next step comes at
            # once) also from pass to pass. Those of a stage would take the cores from other stages
            # on the same machine.
            options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        # A pattern is kept for every shape that occurs, and prompts have all lengths.
        options.enable_mem_pattern = False
        self._session = onnxruntime.InferenceSession(
            str(folder / MODEL_FILE), options, providers=list(providers)
        )
        # What was repacked is not read again.
        forget_mapped_pages([folder / WEIGHTS_FILE])
        trim_heap()
        self.providers: list[str] = self._session.get_providers()
        self._spec = spec
        self._config = config
        self._embedding = embedding
        self._caches: dict[bool, tuple[Array, Array]] = {}
        self._bindings: OrderedDict[tuple[int, int, int, bool], Binding] = OrderedDict()

    def try_out(self) -> None:
        """Run a step and a prompt: some limits of a kernel show only then."""
        spec = self._spec
        buffers = KvBuffers(spec.layers, 1, spec.n_kv_heads, spec.head_dim, max_length=2)
        for n in (1, 2):
            values = np.zeros(
                (1, n) if spec.first else (1, n, spec.hidden),
                np.int64 if spec.first else np.float32,
            )
            self.run(
                buffers, 0, values, np.array([n]), np.zeros(1, np.int64) if spec.last else None
            )
        self.forget_buffers()
        buffers.close()

    def forget_buffers(self) -> None:
        """The KV buffers have moved: bindings to the old ones are void."""
        self._bindings.clear()
        self._caches.clear()

    def run(
        self,
        buffers: KvBuffers,
        start: int,
        values: Array,
        lengths: Array,
        rows: Array | None,
        *,
        long_rope: bool = False,
    ) -> Array:
        """One pass over the slots from `start` on.

        values: int64 (B, S) token ids, or float32 (B, S, hidden) in a shard without the first
            layer.
        lengths: tokens of each row after this pass.
        rows: which of the B * S rows give logits, in a shard with the last layer.

        Returns logits (len(rows), vocab) or hidden states (B * S, hidden), in memory of their own.
        """
        n_rows = 0 if rows is None else len(rows)
        binding = self._binding(buffers, start, values.shape[:2], n_rows, long_rope)
        hidden = values if self._embedding is None else self._embedding.rows(values.reshape(-1))
        binding.values[...] = hidden.reshape(binding.values.shape)
        np.subtract(lengths, 1, out=binding.lengths, casting="same_kind")
        binding.total[...] = lengths.max()
        if rows is not None:
            binding.rows[...] = rows
        self._session.run_with_iobinding(binding.io)
        return binding.result.copy() if values.shape[1] == 1 else binding.result

    def _binding(
        self, buffers: KvBuffers, start: int, shape: tuple[int, ...], n_rows: int, long_rope: bool
    ) -> Binding:
        batch, length = shape
        if length > 1:
            return self._bind(buffers, start, batch, length, n_rows, long_rope)
        key = (start, batch, n_rows, long_rope)
        if key not in self._bindings:
            self._bindings[key] = self._bind(buffers, start, batch, length, n_rows, long_rope)
            if len(self._bindings) > MAX_BINDINGS:
                self._bindings.popitem(last=False)
        self._bindings.move_to_end(key)
        return self._bindings[key]

    def _bind(
        self, buffers: KvBuffers, start: int, batch: int, length: int, n_rows: int, long_rope: bool
    ) -> Binding:
        spec, io = self._spec, self._session.io_binding()
        values = np.zeros((batch, length, spec.hidden), np.float32)
        result = np.empty(
            (n_rows, spec.vocab) if spec.last else (batch * length, spec.hidden), np.float32
        )
        binding = Binding(
            io,
            values,
            np.zeros(batch, np.int32),
            np.zeros((), np.int32),
            np.zeros(n_rows, np.int64),
            result,
        )
        cos, sin = self._rotary(buffers.capacity, long_rope)
        inputs = {
            "hidden_in": values,
            "seqlens_k": binding.lengths,
            "total_length": binding.total,
            "cos_cache": cos,
            "sin_cache": sin,
        }
        if spec.last:
            inputs["rows"] = binding.rows
        for name, array in inputs.items():
            _bind_input(io, name, array)
        for name, array in buffers.arrays.items():
            part = array[start : start + batch]
            _bind_input(io, f"past_{name}", part)
            _bind_output(io, f"present_{name}", part)
        name, shape = ("logits", (1, *result.shape)) if spec.last else ("hidden_out", values.shape)
        _bind_output(io, name, result.reshape(shape))
        return binding

    def close(self) -> None:
        self.forget_buffers()
        if self._embedding is not None:
            self._embedding.close()

    def _rotary(self, capacity: int, long_rope: bool) -> tuple[Array, Array]:
        if long_rope not in self._caches:
            self._caches[long_rope] = rotary_caches(self._config, capacity, long=long_rope)
        return self._caches[long_rope]


def _bind_input(io: Any, name: str, array: Array) -> None:
    io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_output(io: Any, name: str, array: Array) -> None:
    io.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
