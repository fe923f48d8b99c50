"""Ask a Service of the cluster one question through `kubectl port-forward` and stream the answer to
the terminal.

Standard library only: `make up` runs it with the machine's own Python.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

API_PORT = 52415


@contextlib.contextmanager
def forward(namespace: str, service: str) -> Iterator[str]:
    """The base URL under which the Service answers on this machine, as long as the block runs."""
    command = [
        "kubectl",
        "port-forward",
        "--namespace",
        namespace,
        f"service/{service}",
        f":{API_PORT}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()  # Forwarding from 127.0.0.1:43210 -> 52415
        try:
            if "127.0.0.1:" not in line:
                raise SystemExit(f"error: kubectl port-forward to service/{service} failed")
            yield "http://127.0.0.1:" + line.split("127.0.0.1:")[1].split()[0]
        finally:
            process.terminate()


def stream(base: str, question: str, max_tokens: int) -> Iterator[dict[str, object]]:
    """The chunks of the answer as they come."""
    with urllib.request.urlopen(f"{base}/v1/models", timeout=30) as response:
        model = json.load(response)["data"][0]["id"]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = urllib.request.Request(
        f"{base}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        for raw in response:
            line = raw.decode().strip()
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--service", required=True)
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("question")
    options = parser.parse_args()
    sys.stdout.write(f"  > {options.question}\n  ")
    with forward(options.namespace, options.service) as base:
        started, first, tokens, text = time.monotonic(), 0.0, 0, ""
        for chunk in stream(base, options.question, options.max_tokens):
            if chunk.get("error"):
                raise SystemExit(f"error: {chunk['error']}")
            for choice in chunk.get("choices") or []:  # type: ignore[attr-defined]
                piece = choice["delta"].get("content") or ""
                if piece and not first:
                    first = time.monotonic()
                text += piece
                sys.stdout.write(piece.replace("\n", "\n  "))
                sys.stdout.flush()
            usage = chunk.get("usage")
            if isinstance(usage, dict):
                tokens = usage["completion_tokens"]
        ended = time.monotonic()
    if not text:
        raise SystemExit("error: the node sent an answer without text")
    # No rate: the forwarding may hand over a short answer's tokens all at once.
    sys.stdout.write(
        f"\n  ({tokens} tokens in {ended - started:.2f} s, the first after {first - started:.2f}"
        " s)\n"
    )


if __name__ == "__main__":
    main()
