"""Speed of this tree against an earlier commit: `hack/before_after.py COMMIT [--rounds N]`.

Checks the commit out into a temporary worktree, and measures both in turns, so that a slow moment
of the machine hits both: engines through `benchmarks/engine_child.py`, the ring through
`benchmarks/ring.py`, the lifecycle through `benchmarks/lifecycle.py`, each with its own code.
Prints the median of each side and the median of the ratios of neighbours; above 1.00 this tree is
better. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parents[1]
ENGINES: Final = {
    "onnx": (
        ("decode", {"batch": 1, "steps": 64}),
        ("decode", {"batch": 4, "steps": 48}),
        ("decode", {"batch": 16, "steps": 24}),
        ("prefill", {"length": 512}),
    ),
    "numpy": (
        ("decode", {"batch": 1, "steps": 16}),
        ("decode", {"batch": 4, "steps": 8}),
        ("prefill", {"length": 512}),
    ),
}
PROGRAMS: Final = {
    "ring": ("benchmarks/ring.py", "--quick", "--engine", "onnx"),
    "lifecycle": ("benchmarks/lifecycle.py",),
}
# Of benchmarks/ring.py and benchmarks/lifecycle.py: the figures whose smaller value is better.
SMALLER: Final = ("overhead", "hop", "form", "failover", "pause", "idle", "over_", "_us")
Pairs = dict[str, list[tuple[float, float]]]


class Tree:
    """One checkout, and the environment in which its own code is imported."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root = root
        self.environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(root), str(root / "operator"))),
            "HOME": str(cache),  # converted weights of each apart
            "OMP_NUM_THREADS": "2",
            "OPENBLAS_NUM_THREADS": "2",
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.root,
            env=self.environ,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def last_line(self, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=self.environ,
            text=True,
            stdout=subprocess.PIPE,
            check=True,
        )
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def ask(child: subprocess.Popen[str], task: str, fields: dict[str, int]) -> float:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps({"task": task, **fields}) + "\n")
    child.stdin.flush()
    return float(json.loads(child.stdout.readline())["result"])


def engines(before: Tree, after: Tree, model: str, parts: set[str], rounds: int) -> Pairs:
    pairs: Pairs = {}
    for kind, tasks in ENGINES.items():
        if kind not in parts:
            continue
        program = ("benchmarks/engine_child.py", kind, model, "--threads", "2")
        children = [tree.start(*program) for tree in (before, after)]
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()  # it has loaded
        for turn in range(rounds):
            for task, fields in tasks:
                asked = {**fields, "seed": turn + 1} if task == "prefill" else fields
                order = children if turn % 2 else children[::-1]
                told = {id(child): ask(child, task, asked) for child in order}
                name = f"{kind} {task} {next(iter(fields.values()))} tokens/s"
                pairs.setdefault(name, []).append((told[id(children[0])], told[id(children[1])]))
        for child in children:
            child.communicate()
    return pairs


def programs(before: Tree, after: Tree, parts: set[str], rounds: int) -> Pairs:
    pairs: Pairs = {}
    for part, program in PROGRAMS.items():
        for turn in range(rounds if part in parts else 0):
            order = (before, after) if turn % 2 else (after, before)
            told = {id(tree): tree.last_line(*program)["figures"] for tree in order}
            for name in told[id(before)].keys() & told[id(after)].keys():
                pair = (told[id(before)][name], told[id(after)][name])
                pairs.setdefault(name, []).append(pair)
    return pairs


def better(name: str, before: float, after: float) -> float:
    return before / after if any(part in name for part in SMALLER) else after / before


def show(pairs: Pairs) -> dict[str, float]:
    print(f"{'':44} {'before':>10} {'after':>10} {'ratio':>6}")
    ratios = {}
    for name, values in pairs.items():
        ratios[name] = statistics.median(better(name, *pair) for pair in values)
        old, new = (statistics.median(side) for side in zip(*values, strict=True))
        print(f"{name:44} {old:10.3f} {new:10.3f} {ratios[name]:6.2f}")
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--part", action="append", choices=[*ENGINES, *PROGRAMS], help="only this; may be repeated"
    )
    chosen = parser.parse_args()
    parts = set(chosen.part or (*ENGINES, *PROGRAMS))
    sys.path.insert(0, str(HERE))
    from exo.inference.checkpoints.catalog import resolve_model

    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "before"
        git = ("git", "-C", str(HERE), "worktree")
        subprocess.run((*git, "add", "-q", "--detach", str(old), chosen.commit), check=True)
        try:
            before, after = Tree(old, Path(folder) / "a"), Tree(HERE, Path(folder) / "b")
            model = str(resolve_model(chosen.model))
            pairs = engines(before, after, model, parts, chosen.rounds)
            pairs |= programs(before, after, parts, chosen.rounds)
        finally:
            subprocess.run((*git, "remove", "--force", str(old)), check=True)
    ratios = show(pairs)
    print(json.dumps({"name": "before_after", "figures": {}, "ratios": ratios}))


if __name__ == "__main__":
    main()
