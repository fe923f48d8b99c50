"""One engine in a process of its own, measured on request: JSON lines in on stdin, JSON lines out
on stdout.

Kinds: `onnx`, `numpy` (this project's, through `InferenceEngine`), `llama` (llama.cpp through
llama-cpp-python's low-level calls) and `matmuls` (only the matrix products of a pass, in numpy and
float32: no numpy engine can be faster). Each has its own process, so that peak memory is one
engine's and the parent can run them in turn. Not a benchmark itself; see engine.py and
numpy_engine.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

VOCAB = 49152
# Tokens each sequence holds before decoding is timed.
HELD = 32
MAX_SEQUENCES = 16
# Positions of the KV cache in all.
POSITIONS = 4096


class Runner(ABC):
    """Sequences are numbers; a prompt replaces what the sequence held."""

    @abstractmethod
    def prompt(self, sequence: int, tokens: np.ndarray[Any, Any]) -> int:
        """Prefill; returns the greedy next token."""

    @abstractmethod
    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> list[int]:
        """One token of each of the sequences 0, 1, ...; returns the greedy next ones."""

    def steps(self, tokens: list[int], position: int, n: int) -> None:
        """`n` steps of all sequences, each with the greedy tokens of the one before."""
        for k in range(n):
            tokens = self.step(tokens, [position + k] * len(tokens))

    @abstractmethod
    def logits(self, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """float32 (T, vocab) of a sequence on its own."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all sequences."""


class OurRunner(Runner):
    def __init__(
        self, engine_name: str, model: Path, threads: int, options: dict[str, Any]
    ) -> None:
        from exo.inference.checkpoints.open import open_checkpoint
        from exo.inference.engines.factory import create_engine
        from exo.inference.engines.options import EngineOptions
        from exo.inference.models import read_config
        from exo.inference.shard import Shard

        with open_checkpoint(model) as checkpoint:
            self._shard = Shard.whole("benchmark", read_config(checkpoint).n_layers)
        if engine_name == "onnx":
            options = {"threads": threads, **options}
        self._loop = asyncio.new_event_loop()
        chosen, _ = EngineOptions.split({"kv_budget": POSITIONS * 50_000, **options})
        self._engine = create_engine(engine_name, chosen)
        self._loop.run_until_complete(self._engine.initialize())
        self._loop.run_until_complete(self._engine.load_checkpoint(self._shard, model))
        self._live: set[str] = set()

    def _infer(self, steps: list[Any]) -> list[np.ndarray[Any, Any]]:
        return self._loop.run_until_complete(self._infer_batch(steps))

    async def _infer_batch(self, steps: list[Any]) -> list[np.ndarray[Any, Any]]:
        self._live |= {step.sequence_id for step in steps}
        return await self._engine.infer_batch(self._shard, steps)

    def prompt(self, sequence: int, tokens: np.ndarray[Any, Any]) -> int:
        from exo.inference.engines.inference_engine import Step

        return int(self._infer([Step(str(sequence), tokens, 0)])[0][-1].argmax())

    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> list[int]:
        return self._loop.run_until_complete(self._step(tokens, positions))

    async def _step(self, tokens: Sequence[int], positions: Sequence[int]) -> list[int]:
        from exo.inference.engines.inference_engine import Step

        steps = [
            Step(str(i), np.array([t]), p)
            for i, (t, p) in enumerate(zip(tokens, positions, strict=True))
        ]
        return [int(row[0].argmax()) for row in await self._infer_batch(steps)]

    def steps(self, tokens: list[int], position: int, n: int) -> None:
        # As in a node: the event loop is not left between two steps.
        async def run(tokens: list[int]) -> None:
            for k in range(n):
                tokens = await self._step(tokens, [position + k] * len(tokens))

        self._loop.run_until_complete(run(tokens))

    def logits(self, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        from exo.inference.engines.inference_engine import Step

        (out,) = self._infer([Step("logits", tokens, 0, "all")])
        self.clear()
        return out

    def clear(self) -> None:
        for sequence_id in self._live:
            self._loop.run_until_complete(self._engine.release(sequence_id))
        self._live.clear()


class LlamaRunner(Runner):
    """extra_buffers: whether it may repack weights for the processor (AMX); see
    `engine_peers.llama_options`.
    """

    def __init__(self, model: Path, threads: int, *, extra_buffers: bool = True) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        api = self._api
        self._log = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self._log, None)
        api.llama_backend_init()
        model_params = api.llama_model_default_params()
        model_params.use_extra_bufts = extra_buffers
        self._model = api.llama_model_load_from_file(str(model).encode(), model_params)
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = POSITIONS, 2048, MAX_SEQUENCES
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self._context = api.llama_init_from_model(self._model, params)
        self._batch = api.llama_batch_init(2048, 0, 1)
        self._memory = api.llama_get_memory(self._context)

    def _decode(
        self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int], wanted: str
    ) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence) in enumerate(
            zip(tokens, positions, sequences, strict=True)
        ):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted == "all" or i == len(tokens) - 1
        if self._api.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")

    def _row(self, index: int) -> np.ndarray[Any, Any]:
        pointer = self._api.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(pointer, shape=(VOCAB,))

    def prompt(self, sequence: int, tokens: np.ndarray[Any, Any]) -> int:
        self._api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        ids = tokens.tolist()
        self._decode(ids, range(len(ids)), [sequence] * len(ids), "last")
        return int(self._row(len(ids) - 1).argmax())

    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> list[int]:
        self._decode(tokens, positions, range(len(tokens)), "all")
        return [int(self._row(i).argmax()) for i in range(len(tokens))]

    def logits(self, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.clear()
        ids = tokens.tolist()
        self._decode(ids, range(len(ids)), [0] * len(ids), "all")
        return np.stack([self._row(i) for i in range(len(ids))])

    def clear(self) -> None:
        self._api.llama_memory_clear(self._memory, False)


class MatmulRunner(Runner):
    """Matrices of the model's shapes. A pass multiplies by each once, and by the head for the last
    rows only.
    """

    def __init__(self, model: Path) -> None:
        from exo.inference.checkpoints.open import open_checkpoint
        from exo.inference.models import read_config

        with open_checkpoint(model) as checkpoint:
            c = read_config(checkpoint)
        qkv = ((c.heads + 2 * c.kv_heads) * c.head_dim, c.hidden)
        shapes = [qkv, (c.hidden, c.heads * c.head_dim), (2 * c.ffn, c.hidden), (c.hidden, c.ffn)]
        rng = np.random.default_rng(0)
        self._layers = [
            rng.random(shape, np.float32) for _ in range(c.n_layers) for shape in shapes
        ]
        self._head = rng.random((c.vocab, c.hidden), np.float32)

    def _pass(self, rows: int, head_rows: int) -> list[int]:
        inputs = {
            width: np.ones((rows, width), np.float32)
            for width in {m.shape[1] for m in self._layers}
        }
        for matrix in self._layers:
            _ = inputs[matrix.shape[1]] @ matrix.T
        _ = np.ones((head_rows, self._head.shape[1]), np.float32) @ self._head.T
        return [0] * head_rows

    def prompt(self, sequence: int, tokens: np.ndarray[Any, Any]) -> int:
        return self._pass(len(tokens), 1)[0]

    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> list[int]:
        return self._pass(len(tokens), len(tokens))

    def logits(self, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        raise NotImplementedError("there is no model here")

    def clear(self) -> None:
        pass


def ids(n: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(100, VOCAB, n)


def decode(runner: Runner, batch: int, steps: int) -> float:
    """Tokens per second of `batch` sequences together."""
    tokens = [runner.prompt(i, ids(HELD, seed=i)) for i in range(batch)]
    tokens = runner.step(tokens, [HELD] * batch)
    began = time.perf_counter()
    runner.steps(tokens, HELD + 1, steps)
    seconds = time.perf_counter() - began
    runner.clear()
    return batch * steps / seconds


def prefill(runner: Runner, length: int, seed: int) -> float:
    """Tokens per second up to the first answer token. Use a new seed each time, so that nothing can
    be reused.
    """
    tokens = ids(length, seed)
    began = time.perf_counter()
    runner.prompt(0, tokens)
    seconds = time.perf_counter() - began
    runner.clear()
    return length / seconds


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def answer(runner: Runner, request: dict[str, Any]) -> Any:
    task = request["task"]
    if task == "decode":
        return decode(runner, request["batch"], request["steps"])
    if task == "prefill":
        return prefill(runner, request["length"], request["seed"])
    if task == "nll":
        return negative_log_likelihood(runner, request["windows"])
    if task == "peak_bytes":
        return peak_bytes()
    raise ValueError(f"unknown task {task!r}")


def negative_log_likelihood(runner: Runner, windows: list[list[int]]) -> tuple[float, int]:
    """The sum over all tokens but the first of each window, and how many tokens that is."""
    total, count = 0.0, 0
    for window in windows:
        tokens = np.array(window)
        rows = runner.logits(tokens)[:-1].astype(np.float64)
        rows -= rows.max(-1, keepdims=True)
        chosen = rows[np.arange(len(rows)), tokens[1:]] - np.log(np.exp(rows).sum(-1))
        total -= float(chosen.sum())
        count += len(chosen)
    return total, count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["onnx", "numpy", "llama", "matmuls"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--options", default="{}", help="of our engine, as JSON")
    arguments = parser.parse_args()
    began = time.perf_counter()
    if arguments.kind == "llama":
        runner: Runner = LlamaRunner(
            arguments.model, arguments.threads, **json.loads(arguments.options)
        )
    elif arguments.kind == "matmuls":
        runner = MatmulRunner(arguments.model)
    else:
        runner = OurRunner(
            arguments.kind, arguments.model, arguments.threads, json.loads(arguments.options)
        )
    print(json.dumps({"load_seconds": time.perf_counter() - began}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"result": answer(runner, json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()
