"""The numpy engine compared with its own limit, the matrix products alone, and with llama.cpp.

    python benchmarks/numpy_engine.py [--quick] [--model FILE] [--threads N]

Needs llama-cpp-python (requirements/bench.lock) for the second ratio. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from typing import Any

from engine_peers import Peer, best_of_rounds, cores, has_llama, llama_options

from exo.inference.checkpoints.catalog import resolve_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument(
        "--model", default="smollm2-135m", help="a bundled model or the path of a GGUF file"
    )
    parser.add_argument("--threads", type=int, default=cores())
    arguments = parser.parse_args()
    model = resolve_model(arguments.model)
    kinds: dict[str, dict[str, Any]] = {"numpy": {}, "matmuls": {}}
    if has_llama():
        kinds["llama"] = llama_options(model, arguments.threads)
    rounds = 2 if arguments.quick else 5
    with contextlib.ExitStack() as stack:
        peers = [
            stack.enter_context(Peer(kind, model, arguments.threads, **options))
            for kind, options in kinds.items()
        ]
        decode = best_of_rounds(
            peers[:2], rounds, "decode", batch=1, steps=8 if arguments.quick else 16
        )
        prefill = best_of_rounds(peers, max(2, rounds - 2), "prefill", length=512)
        peak = float(peers[0].ask("peak_bytes"))
    print(
        f"decode, tokens per second: numpy {decode['numpy']:.1f}, its matrix products alone"
        f" {decode['matmuls']:.1f}"
    )
    for kind, rate in prefill.items():
        print(f"prefill of 512, tokens per second: {kind} {rate:.0f}")
    print(f"peak resident: {peak / 1e6:.0f} MB")
    ratios = {"decode_vs_matmuls": decode["numpy"] / decode["matmuls"]}
    ratios |= {
        f"prefill_512_vs_{kind}": prefill["numpy"] / rate
        for kind, rate in prefill.items()
        if kind != "numpy"
    }
    figures = {"numpy_peak_bytes": peak, "numpy_load_seconds": peers[0].load_seconds}
    figures |= {f"{kind}_decode_tps": rate for kind, rate in decode.items()}
    figures |= {f"{kind}_prefill_512_tps": rate for kind, rate in prefill.items()}
    rounded = [
        {name: round(value, 4) for name, value in part.items()} for part in (figures, ratios)
    ]
    print(json.dumps({"name": "numpy_engine", "figures": rounded[0], "ratios": rounded[1]}))


if __name__ == "__main__":
    main()
