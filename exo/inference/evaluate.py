"""What `exo eval` and `exo bench` do: logits of given tokens, perplexity of a text, tokens per
second.

Each function finds and loads the model, computes, and returns what the command prints. Progress
goes to `say`.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from exo.inference.arrays import Array
from exo.inference.checkpoints.catalog import model_id_of, resolve_model
from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.engines.engine import Engine
from exo.inference.engines.factory import DEFAULTS, create_engine
from exo.inference.engines.inference_engine import Step
from exo.inference.engines.memory import resident_bytes
from exo.inference.engines.options import EngineOptions
from exo.inference.errors import InvalidRequest, SequenceLost
from exo.inference.models import ModelConfig, read_config
from exo.inference.shard import Shard

# Long inputs go in chunks, which bounds the memory of attention scores.
CHUNK: Final = 512
WINDOW: Final = 1024
Say = Callable[[str, int, int], None]


def _silent(_what: str, _done: int, _total: int) -> None:
    pass


class Stages:
    """The model's layers as stages in one process; each batch goes through them in order."""

    def __init__(self, engines: list[tuple[Engine, Shard]], config: ModelConfig) -> None:
        self.engines = engines
        self.config = config

    def engine_name(self, asked: str) -> str:
        """The engine that runs: with `auto`, the one that it chose."""
        return self.engines[0][0].active or asked

    async def infer(self, steps: Sequence[Step]) -> list[Array]:
        out: list[Array] = []
        for engine, shard in self.engines:
            out = await engine.infer_batch(shard, steps)
            steps = [
                Step(s.sequence_id, x, s.position, s.rows) for s, x in zip(steps, out, strict=True)
            ]
        return out

    async def release(self, sequence_id: str) -> None:
        for engine, _ in self.engines:
            await engine.release(sequence_id)

    async def prefill(self, sequences: dict[str, Array]) -> dict[str, Array]:
        """Logits (T, vocab) of every token of each sequence, all as one batch, in chunks."""
        for _ in range(len(self.engines) * len(sequences)):
            try:
                return await self._prefill(sequences)
            except SequenceLost:
                # A sequence has outgrown the short rope factors; each may do so once in each stage.
                continue
        return await self._prefill(sequences)

    async def _prefill(self, sequences: dict[str, Array]) -> dict[str, Array]:
        parts: dict[str, list[Array]] = {
            name: [np.empty((0, self.config.vocab), np.float32)] for name in sequences
        }
        for at in range(0, max((len(t) for t in sequences.values()), default=0), CHUNK):
            steps = [
                Step(n, t[at : at + CHUNK], at, "all") for n, t in sequences.items() if len(t) > at
            ]
            for step, logits in zip(steps, await self.infer(steps), strict=True):
                parts[step.sequence_id].append(logits)
        return {name: np.concatenate(logits) for name, logits in parts.items()}


@asynccontextmanager
async def loaded(
    model: str | Path, engine: str, shards: int = 1, options: EngineOptions = DEFAULTS
) -> AsyncIterator[Stages]:
    """The model's layers, in `shards` stages of about equal size. Raises `InvalidRequest` or
    `CheckpointError`.
    """
    path = model if isinstance(model, Path) else resolve_model(model)
    with open_checkpoint(path) as checkpoint:
        config = read_config(checkpoint)
    if not 1 <= shards <= config.n_layers:
        raise InvalidRequest(
            f"the model has {config.n_layers} layers: 1 to {config.n_layers} shards", field="shards"
        )
    bounds = [i * config.n_layers // shards for i in range(shards + 1)]
    name = model_id_of(str(path))
    async with AsyncExitStack() as stack:
        engines: list[tuple[Engine, Shard]] = []
        for k in range(shards):
            one = await stack.enter_async_context(create_engine(engine, options))
            shard = Shard(name, bounds[k], bounds[k + 1] - 1, config.n_layers)
            await one.load_checkpoint(shard, path)
            engines.append((one, shard))
        yield Stages(engines, config)


async def eval_logits(
    model: str | Path,
    tokens_file: Path,
    out: Path,
    engine: str = "auto",
    shards: int = 1,
    batch: bool = False,
    say: Say = _silent,
    options: EngineOptions = DEFAULTS,
) -> dict[str, Any]:
    """Write `logits_0`, `logits_1`, ... float32 (tokens, vocab), one per list of token ids in
    `tokens_file`.
    """
    lists = read_token_lists(tokens_file)
    check_writable(out)  # now, before hours of computing
    results: dict[str, Array] = {}
    async with loaded(model, engine, shards, options) as stages:
        _check_vocabulary(lists, stages.config.vocab, tokens_file)
        names = [f"logits_{i}" for i in range(len(lists))]
        groups = [names] if batch else [[name] for name in names]
        for group in groups:
            say("logits", len(results), len(lists))
            results |= await stages.prefill({name: lists[names.index(name)] for name in group})
            for name in group:
                await stages.release(name)
        say("logits", len(results), len(lists))
    _save(out, {name: results[name] for name in names})
    return {"name": "logits", "out": str(out), "lists": len(lists), "tokens": sum(map(len, lists))}


def check_writable(out: Path) -> None:
    """Raises `InvalidRequest`. Changes nothing."""
    was_there = out.exists()
    try:
        with out.open("ab"):
            pass
        if not was_there:
            out.unlink()
    except OSError as error:
        raise InvalidRequest(f"{out}: {error.strerror or error}", field="out") from error


def _save(out: Path, arrays: dict[str, Any]) -> None:
    with out.open("wb") as file:  # np.savez would add a suffix to a name without one
        np.savez(file, **arrays)


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror or error}", field="text") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{path} is not UTF-8 text (byte {error.start})", field="text"
        ) from error


def read_token_lists(path: Path) -> list[Array]:
    """A JSON list of lists of token ids. Raises `InvalidRequest` saying what is wrong and where."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror or error}", field="tokens-file") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path} is not JSON: {error}", field="tokens-file") from None
    if not isinstance(value, list):
        raise InvalidRequest(f"{path} is not a list of lists of token ids", field="tokens-file")
    for i, ids in enumerate(value):
        if not isinstance(ids, list) or any(
            not isinstance(t, int) or isinstance(t, bool) for t in ids
        ):
            raise InvalidRequest(
                f"{path}: entry {i} is not a list of token ids", field="tokens-file"
            )
        if any(not 0 <= t < 1 << 31 for t in ids):
            raise InvalidRequest(
                f"{path}: entry {i} has a token id outside the vocabulary", field="tokens-file"
            )
    return [np.array(ids, dtype=np.int64) for ids in value]


def _check_vocabulary(lists: Sequence[Array], vocab: int, path: Path) -> None:
    for i, ids in enumerate(lists):
        if len(ids) and int(ids.max()) >= vocab:
            message = f"{path}: entry {i}: token id {int(ids.max())} is outside 0..{vocab - 1}"
            raise InvalidRequest(message, field="tokens-file")


async def eval_perplexity(
    model: str | Path,
    text: Path,
    engine: str = "auto",
    say: Say = _silent,
    options: EngineOptions = DEFAULTS,
) -> dict[str, Any]:
    """exp of the mean negative log likelihood per token, over windows of 1024 tokens that do not
    overlap.
    """
    content = read_text(text)
    begun = time.monotonic()
    async with loaded(model, engine, options=options) as stages:
        one, shard = stages.engines[0]
        ids = await one.encode(shard, content)
        window = min(WINDOW, stages.config.context_length)
        if len(ids) < 2:
            raise InvalidRequest(
                f"{text} has {len(ids)} tokens; at least 2 are needed", field="text"
            )
        total, counted = 0.0, 0
        for at in range(0, len(ids) - 1, window):
            part = ids[at : at + window]
            if len(part) < 2:
                break
            say("perplexity", at, len(ids))
            logits = (await stages.prefill({"text": part}))["text"]
            total += _negative_log_likelihood(logits[:-1], part[1:])
            counted += len(part) - 1
        say("perplexity", len(ids), len(ids))
        used = stages.engine_name(engine)
    return {
        "name": "perplexity",
        "model": model_id_of(str(model)),
        "engine": used,
        "figures": {
            "perplexity": float(np.exp(total / counted)),
            "nll": total / counted,
            "tokens": counted,
            "seconds": time.monotonic() - begun,
        },
        "ratios": {},
    }


def _negative_log_likelihood(logits: Array, targets: Array) -> float:
    total = 0.0
    for at in range(0, len(targets), 64):  # float64 copies of a few rows at a time
        rows = logits[at : at + 64].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        picked = rows[np.arange(len(rows)), targets[at : at + 64]]
        total += float((np.log(np.exp(rows).sum(axis=1)) - picked).sum())
    return total


async def bench(
    model: str | Path,
    engine: str = "auto",
    batches: Sequence[int] = (1, 4, 16),
    prefills: Sequence[int] = (128, 512),
    say: Say = _silent,
    shards: int = 1,
    options: EngineOptions = DEFAULTS,
) -> dict[str, Any]:
    """Tokens per second: decoding with each batch size (after 64 tokens of prompt), prefilling each
    prompt length.

    With more than one shard, a step goes through all stages before the next one begins: this shows
    what stages cost in one process, and not how fast a ring is.
    """
    if any(n < 1 for n in (*batches, *prefills)):
        raise InvalidRequest("batch sizes and prompt lengths are at least 1", field="batch")
    rng = np.random.default_rng(0)
    figures: dict[str, float] = {}
    begun = time.monotonic()
    async with loaded(model, engine, shards, options) as stages:
        figures["load_seconds"] = time.monotonic() - begun
        limit = stages.config.context_length
        if max((*prefills, 1)) > limit:
            raise InvalidRequest(f"the context window has {limit} tokens", field="prefill")
        total = len(batches) + len(prefills)
        for done, n in enumerate(prefills):
            say("bench", done, total)
            figures[f"prefill_{n}"] = await _prefill_rate(stages, n, rng)
        for done, n in enumerate(batches):
            say("bench", len(prefills) + done, total)
            figures[f"decode_{n}"] = await _decode_rate(stages, n, rng)
        say("bench", total, total)
        figures["rss_mib"] = resident_bytes() / (1 << 20)
        used = stages.engine_name(engine)
    head = {"name": "bench", "model": model_id_of(str(model)), "engine": used, "shards": shards}
    return {**head, "figures": figures, "ratios": {}}


async def _prefill_rate(stages: Stages, n: int, rng: np.random.Generator) -> float:
    """Median of three, each with other tokens, so that nothing can be reused."""
    rates = []
    for k in range(4):
        tokens = rng.integers(0, stages.config.vocab, n)
        begun = time.perf_counter()
        await stages.infer([Step(f"p{k}", tokens, 0)])
        rates.append(n / (time.perf_counter() - begun))
        await stages.release(f"p{k}")
    return float(np.median(rates[1:]))  # the first warms up


async def _decode_rate(
    stages: Stages, batch: int, rng: np.random.Generator, steps: int = 32
) -> float:
    vocab, prompt = stages.config.vocab, min(64, max(1, stages.config.context_length - steps - 2))
    names = [f"d{i}" for i in range(batch)]
    await stages.infer([Step(name, rng.integers(0, vocab, prompt), 0) for name in names])
    seconds: list[float] = []
    for k in range(min(steps, stages.config.context_length - prompt)):
        step = [Step(name, rng.integers(0, vocab, 1), prompt + k) for name in names]
        begun = time.perf_counter()
        await stages.infer(step)
        seconds.append(time.perf_counter() - begun)
    for name in names:
        await stages.release(name)
    return float(batch / np.median(seconds))
