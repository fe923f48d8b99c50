"""Perplexity of each weight format on the same text, compared with float32 and llama.cpp.

    python benchmarks/perplexity.py [--quick] [--model FILE] [--text FILE]

Windows of 256 tokens, each read from its beginning. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path

from engine_peers import Peer, cores, has_llama, llama_options

from exo.inference.checkpoints.catalog import resolve_model
from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.text.load import load_tokenizer

WINDOW = 256
TEXT = Path(__file__).with_suffix(".txt")
# Name in the table -> kind of process, options.
FORMATS: dict[str, tuple[str, dict[str, str]]] = {
    "float32": ("onnx", {"weight_format": "float32"}),
    "stored": ("onnx", {"weight_format": "stored"}),
    "8bit": ("onnx", {"weight_format": "8bit"}),
    "4bit": ("onnx", {"weight_format": "4bit"}),
    "llama.cpp": ("llama", {}),
}


def windows_of(model: Path, text: Path, most: int | None) -> list[list[int]]:
    with open_checkpoint(model) as checkpoint:
        ids = load_tokenizer(checkpoint).encode(text.read_text())
    parts = [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)]
    return [part for part in parts if len(part) > 1][:most]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="the first window only")
    parser.add_argument(
        "--model", default="smollm2-135m", help="a bundled model or the path of a GGUF file"
    )
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--threads", type=int, default=cores())
    arguments = parser.parse_args()
    model = resolve_model(arguments.model)
    windows = windows_of(model, arguments.text, 1 if arguments.quick else None)
    perplexity: dict[str, float] = {}
    count = 0
    with tempfile.TemporaryDirectory() as cache:
        for name, (kind, options) in FORMATS.items():
            if kind == "llama" and not has_llama():
                print("llama-cpp-python is not installed (requirements/bench.lock)")
                continue
            extra = (
                {"cache_dir": cache, **options}
                if kind == "onnx"
                else llama_options(model, arguments.threads)
            )
            with Peer(kind, model, arguments.threads, **extra) as peer:
                total, count = peer.ask("nll", windows=windows)
            perplexity[name] = math.exp(total / count)
    print(f"{'weights':12}{'perplexity':>12}{'vs float32':>12}    ({count} tokens)")
    for name, value in perplexity.items():
        print(f"{name:12}{value:12.4f}{value / perplexity['float32']:12.4f}")
    ratios = {
        f"{name}_vs_float32": value / perplexity["float32"] for name, value in perplexity.items()
    }
    if "llama.cpp" in perplexity:
        ratios["stored_vs_llama"] = perplexity["stored"] / perplexity["llama.cpp"]
    figures = {
        **{f"perplexity_{name}": round(value, 4) for name, value in perplexity.items()},
        "tokens": count,
    }
    rounded = {name: round(value, 5) for name, value in ratios.items()}
    print(json.dumps({"name": "perplexity", "figures": figures, "ratios": rounded}))


if __name__ == "__main__":
    main()
