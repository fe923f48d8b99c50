"""The ring in numbers: one, two and three nodes as processes on this machine, beside the classic
implementation.

    python benchmarks/ring.py [--quick] [--engine auto|numpy|onnx|none] [--model NAME]

Overhead and aggregate with the dummy engine (nothing is computed: what remains is orchestration),
stages of the real engine in ratio to one process, a 4 MiB activation hop, time to form, failover,
memory when idle. The classic figures were measured on another machine of the same kind (2 vCPUs)
and are given for comparison. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "tests" / "support"))
from ports import free_ports

CHILD = Path(__file__).with_name("ring_child.py")
# Of the classic implementation: milliseconds per token, tokens per second, seconds, MiB.
CLASSIC = {
    "overhead_ms_1": 0.19,
    "overhead_ms_2": 1.8,
    "overhead_ms_3": 3.1,
    "aggregate_8_1": 5524.0,
    "aggregate_8_2": 556.0,
    "aggregate_8_3": 396.0,
    "hop_4mib_ms": 7.4,
    "form_3_seconds": 17.0,
    "failover_seconds": 13.5,
    "idle_rss_mib": 190.0,
}
Figures = dict[str, float]


class Node:
    def __init__(self, settings: dict[str, Any], threads: int) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": str(threads),
        }
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def tell(self, do: str, **fields: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a node ended with code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        self.tell(do, **fields)
        return self.hear()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def ring(
    count: int, engine: str, model: str, threads: int = 0, *, absent: int = 0
) -> Iterator[tuple[list[Node], Figures]]:
    """Nodes that have formed, and how long that took: from the start of the processes, and from
    `initialize`.

    absent: so many of the last ones run, and have yet to be told to start.
    """
    ports = free_ports(count)
    threads = threads or os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        config = Path(folder) / "peers.json"
        peers = {f"n{i}": {"address": "127.0.0.1", "port": port} for i, port in enumerate(ports)}
        config.write_text(json.dumps({"peers": peers}))
        spawned = time.monotonic()
        nodes = []
        for i, port in enumerate(ports):
            settings = {
                "node_id": f"n{i}",
                "engine": engine,
                "model": model,
                "host": "127.0.0.1",
                "grpc_port": port,
            }
            settings |= {
                "discovery": "manual",
                "discovery_config": str(config),
                "drain_seconds": 1.0,
            }
            nodes.append(Node(settings, threads))
            stack.callback(nodes[-1].kill)
        present = nodes[: count - absent]
        for node in present:
            node.tell("start")
        up = [node.hear()["seconds"] for node in present]
        at = max(everywhere(present, "formed", stages=len(present), of="at"))
        yield nodes, {"from_spawn": at - spawned, "slowest_initialize": max(up)}


def everywhere(nodes: list[Node], do: str, *, of: str, **fields: Any) -> list[float]:
    for node in nodes:
        node.tell(do, **fields)
    return [float(node.hear()[of]) for node in nodes]


def orchestration(rounds: int, tokens: int) -> Figures:
    """Dummy engine: milliseconds per token of one stream, tokens per second of eight together,
    memory when idle.
    """
    figures: Figures = {}
    for count in (1, 2, 3):
        with ring(count, "dummy", "dummy", threads=1) as (nodes, took):
            entry = nodes[0]
            idle = entry.ask("rss")["mib"]
            entry.ask("generate", clients=8, tokens=50)
            one = [
                entry.ask("generate", clients=1, tokens=tokens)["seconds"] / tokens
                for _ in range(rounds)
            ]
            eight = [entry.ask("generate", clients=8, tokens=tokens) for _ in range(rounds)]
            figures[f"overhead_ms_{count}"] = 1000 * min(one)
            figures[f"aggregate_8_{count}"] = max(
                each["tokens"] / each["seconds"] for each in eight
            )
            figures[f"form_{count}_seconds"] = took["from_spawn"]
            figures["idle_rss_mib"] = idle
            if count == 2:
                figures["hop_4mib_ms"] = 1000 * float(
                    entry.ask("hop", megabytes=4, rounds=3 * rounds)["seconds"]
                )
    return figures


def failover(kills: int) -> Figures:
    """Kill -9 of a stage in mid-stream: until the new plan is in force, and the longest pause the
    reader sees.
    """
    plans, pauses = [], []
    for _ in range(kills):
        with ring(3, "dummy", "dummy", threads=1) as (nodes, _):
            entry, survivor, victim = nodes
            entry.ask("generate", clients=1, tokens=100)
            entry.ask("gap")
            entry.tell("generate", clients=1, tokens=1500)
            time.sleep(0.15)
            killed = time.monotonic()
            victim.kill()
            # The entry is busy with the stream: when it has the new plan shows in the pause of its
            # tokens.
            plans.append(survivor.ask("formed", stages=2)["at"] - killed)
            entry.hear()
            pauses.append(entry.ask("gap")["seconds"])
            assert entry.ask("left") == {"sequences": 0, "requests": 0}
    return {"failover_seconds": max(plans), "failover_pause_seconds": max(pauses)}


def coming_and_going(engine: str, model: str, tokens: int) -> Figures:
    """A third node joins two that stream with the real engine, and leaves again: the longest pause
    the reader sees.

    Beside the longest pause of the same stream while nothing happens.
    """
    threads = max(1, (os.cpu_count() or 1) // 2)
    with ring(3, engine, model, threads=threads, absent=1) as (nodes, _):
        entry, _, newcomer = nodes
        gaps = {}
        for what, do in (("quiet", None), ("join", "start"), ("leave", "stop")):
            entry.ask("generate", clients=1, tokens=4)
            entry.ask("gap")
            entry.tell("generate", clients=1, tokens=tokens)
            time.sleep(1.0)
            if do is not None:
                newcomer.ask(do)
                nodes[1].ask("formed", stages=3 if do == "start" else 2)
            entry.hear()
            gaps[f"{engine}_pause_{what}_seconds"] = entry.ask("gap")["seconds"]
    return gaps


def stages(engine: str, model: str, rounds: int, tokens: int) -> Figures:
    """Real engine: tokens per second of decoding, one and eight clients, over one, two and three
    processes.
    """
    figures: Figures = {}
    for count in (1, 2, 3):
        with ring(count, engine, model) as (nodes, took):
            figures[f"{engine}_form_{count}_seconds"] = took["from_spawn"]
            for clients in (1, 8):
                nodes[0].ask("generate", clients=clients, tokens=4)
                runs = [
                    nodes[0].ask("generate", clients=clients, tokens=tokens) for _ in range(rounds)
                ]
                best = max((each["tokens"] - clients) / each["decode_seconds"] for each in runs)
                figures[f"{engine}_{count}_stages_{clients}_clients"] = best
    return figures


def ratios(figures: Figures) -> Figures:
    """Above 1 is better than the classic implementation, or than one process."""
    out = {}
    for name, classic in CLASSIC.items():
        if name in figures:
            mine = figures[name]
            out[f"{name}_vs_classic"] = (
                mine / classic if name.startswith("aggregate") else classic / mine
            )
    for name, value in figures.items():
        engine, _, rest = name.partition("_")
        if rest[1:].startswith("_stages_") and not rest.startswith("1"):
            out[f"{name}_vs_one"] = value / figures[f"{engine}_1{rest[1:]}"]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--engine", default="auto", help="the real engine; none leaves it out")
    parser.add_argument("--model", default="smollm2-135m")
    chosen = parser.parse_args()
    rounds = 2 if chosen.quick else 5
    figures = orchestration(rounds, 100 if chosen.quick else 400)
    figures |= failover(1 if chosen.quick else 5)
    if chosen.engine != "none":
        figures |= coming_and_going(chosen.engine, chosen.model, 400)
        figures |= stages(
            chosen.engine,
            chosen.model,
            rounds=1 if chosen.quick else 3,
            tokens=16 if chosen.quick else 48,
        )
    compared = ratios(figures)
    for name, value in (figures | compared).items():
        print(f"{name:45} {value:12.3f}")
    print(json.dumps({"name": "ring", "figures": figures, "ratios": compared}))


if __name__ == "__main__":
    main()
