"""The onnx engine compared with llama.cpp and the numpy engine.

They run the same GGUF with the same threads, in turn.

    python benchmarks/engine.py [--quick] [--model FILE] [--threads N]

Needs llama-cpp-python (requirements/bench.lock) for the ratios. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine_peers import Peer, best_of_rounds, cores, has_llama, llama_options

from exo.inference.checkpoints.catalog import resolve_model

# Sequences -> steps: a fifth of a second and more of each, since a virtual machine stumbles every
# few milliseconds.
DECODE = {1: 48, 4: 24, 16: 12}
PREFILL = (128, 512, 2048)
# What `memory` runs before it reads the peak.
MEMORY_PROMPT, MEMORY_STEPS = 512, 16
Figures = dict[str, float]
# The engines to compare with: kind -> options.
Others = dict[str, dict[str, Any]]


def throughput(peers: list[Peer], quick: bool) -> dict[str, dict[str, float]]:
    """Per task, tokens per second by engine."""
    table: dict[str, dict[str, float]] = {}
    rounds = 3 if quick else 4
    for batch, steps in DECODE.items():
        table[f"decode_b{batch}"] = best_of_rounds(
            peers, 2 * rounds, "decode", batch=batch, steps=steps
        )
    for length in PREFILL[: 2 if quick else 3]:
        few = 1 if length > 512 else rounds - 1
        table[f"prefill_{length}"] = best_of_rounds(peers, few, "prefill", length=length)
    return table


def loads(model: Path, threads: int, cache: Path, others: Others) -> Figures:
    """Seconds until the engine can compute: cold without converted weights, warm with them."""
    figures: Figures = {}
    for name in ("onnx_load_cold", "onnx_load_warm"):
        with Peer("onnx", model, threads, cache_dir=str(cache)) as peer:
            figures[f"{name}_seconds"] = peer.load_seconds
    for kind, options in others.items():
        with Peer(kind, model, threads, **options) as peer:
            figures[f"{kind}_load_seconds"] = peer.load_seconds
    return figures


def memory(model: Path, threads: int, cache: Path, others: Others) -> Figures:
    """Peak resident bytes of a process that loads, reads a prompt and answers."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as empty:
        for name, options in {
            "onnx_cold": {"cache_dir": empty},
            "onnx": {"cache_dir": str(cache)},
        }.items():
            with Peer("onnx", model, threads, **options) as peer:
                figures[f"{name}_peak_bytes"] = run_for_memory(peer)
    for kind, options in others.items():
        with Peer(kind, model, threads, **options) as peer:
            figures[f"{kind}_peak_bytes"] = run_for_memory(peer)
    return figures


def run_for_memory(peer: Peer) -> float:
    peer.ask("prefill", length=MEMORY_PROMPT, seed=0)
    peer.ask("decode", batch=1, steps=MEMORY_STEPS)
    return float(peer.ask("peak_bytes"))


@contextlib.contextmanager
def started(model: Path, threads: int, cache: Path, others: Others) -> Iterator[list[Peer]]:
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer("onnx", model, threads, cache_dir=str(cache)))]
        peers += [
            stack.enter_context(Peer(kind, model, threads, **options))
            for kind, options in others.items()
        ]
        yield peers


def ratios(table: dict[str, dict[str, float]], figures: Figures, model: Path) -> Figures:
    out: Figures = {}
    for task, by_engine in table.items():
        for other in by_engine.keys() - {"onnx"}:
            out[f"{task}_vs_{other}"] = by_engine["onnx"] / by_engine[other]
    # Keys and values of what `run_for_memory` holds at most, float32.
    kv = kv_bytes_per_token(model) * (MEMORY_PROMPT + MEMORY_STEPS)
    for name in ("onnx", "onnx_cold"):
        out[f"{name}_peak_less_kv_vs_file"] = (
            figures[f"{name}_peak_bytes"] - kv
        ) / model.stat().st_size
    return out


def kv_bytes_per_token(model: Path) -> int:
    from exo.inference.checkpoints.open import open_checkpoint
    from exo.inference.models import read_config
    from exo.inference.onnx.graph.layout import KV_DTYPE

    with open_checkpoint(model) as checkpoint:
        config = read_config(checkpoint)
    return config.n_layers * config.kv_values_per_token_and_layer * KV_DTYPE().itemsize


def show(table: dict[str, dict[str, float]], figures: Figures, compared: Figures) -> None:
    kinds = list(next(iter(table.values())))
    print(f"{'tokens per second':20}" + "".join(f"{kind:>10}" for kind in kinds) + "   onnx is")
    for task, by_engine in table.items():
        row = "".join(f"{by_engine[kind]:10.0f}" for kind in kinds)
        against = ", ".join(f"{compared[f'{task}_vs_{k}']:.2f} x {k}" for k in kinds if k != "onnx")
        print(f"{task:20}{row}   {against}")
    for name, value in figures.items():
        text = f"{value / 1e6:.0f} MB" if name.endswith("bytes") else f"{value:.2f} s"
        print(f"{name:30}{text:>12}")
    for name, value in compared.items():
        if "peak" in name:
            print(f"{name:30}{value:12.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="under a minute: fewer rounds, no 2048 prompt, no numpy",
    )
    parser.add_argument(
        "--model", default="smollm2-135m", help="a bundled model or the path of a GGUF file"
    )
    parser.add_argument("--threads", type=int, default=cores())
    arguments = parser.parse_args()
    model = resolve_model(arguments.model)
    others: Others = {}
    if has_llama():
        others["llama"] = llama_options(model, arguments.threads)
    else:
        print(
            "llama-cpp-python is not installed (requirements/bench.lock): no ratios against"
            " llama.cpp"
        )
    if not arguments.quick:
        others["numpy"] = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        figures = loads(model, arguments.threads, cache, others)
        figures |= memory(model, arguments.threads, cache, others)
        with started(model, arguments.threads, cache, others) as peers:
            table = throughput(peers, arguments.quick)
    # The first token of a short chat prompt: the time of a 128-token prefill.
    figures |= {
        f"{kind}_first_token_seconds": 128 / rate for kind, rate in table["prefill_128"].items()
    }
    compared = ratios(table, figures, model)
    show(table, figures, compared)
    figures |= {
        f"{kind}_{task}_tps": rate for task, row in table.items() for kind, rate in row.items()
    }
    rounded = [{k: round(v, 4) for k, v in part.items()} for part in (figures, compared)]
    print(json.dumps({"name": "engine", "figures": rounded[0], "ratios": rounded[1]}))


if __name__ == "__main__":
    main()
