"""Starts the processes of engine_child.py and asks them in turn. Not a benchmark itself."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("engine_child.py")
ROOT = CHILD.parents[1]


def cores() -> int:
    return len(os.sched_getaffinity(0))


def has_llama() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def llama_options(model: Path, threads: int) -> dict[str, Any]:
    """Its own defaults, unless it crashes with them, as version 0.3.36 does in its AMX code on some
    processors.
    """
    try:
        with Peer("llama", model, threads) as peer:
            peer.ask("prefill", length=64, seed=0)
    except RuntimeError as error:
        print(f"llama.cpp with repacked weights: {error}; measured without them")
        return {"extra_buffers": False}
    return {}


class Peer:
    """One engine in its process. Use as a context manager."""

    def __init__(self, kind: str, model: Path, threads: int, **options: Any) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": str(threads),
        }
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
        command = [sys.executable, str(CHILD), kind, str(model), "--threads", str(threads)]
        command += ["--options", json.dumps(options)]
        self.kind = kind
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.load_seconds = float(self._read()["load_seconds"])

    def ask(self, task: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._read()["result"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.kind} process ended with {self._process.wait()}")
        result: dict[str, Any] = json.loads(line)
        return result

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def best_of_rounds(peers: list[Peer], rounds: int, task: str, **arguments: Any) -> dict[str, float]:
    """The highest answer of each peer. They take turns, so that a slow moment of the machine
    affects all of them.
    """
    best = dict.fromkeys((peer.kind for peer in peers), 0.0)
    for turn in range(rounds):
        for peer in peers:
            value = float(
                peer.ask(task, **({"seed": turn} if task == "prefill" else {}), **arguments)
            )
            best[peer.kind] = max(best[peer.kind], value)
    return best
