"""The ring as real processes over real sockets: one model over three `exo serve`, and what happens
when one dies.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from serve_processes import (
    CONT,
    KILL,
    STOP,
    TERM,
    Ring,
    Served,
    Stream,
    ring_of,
    stream,
    under_way,
    until,
)

SMOLLM2 = "smollm2-135m"
PROMPTS = (
    "What is the capital of France?",
    "Count from one to five.",
    "Name three colours of the rainbow.",
    "Write a haiku about rain.",
)
DUMMY = ("--engine", "dummy", "--model", "dummy")


async def texts(ring: Ring, max_tokens: int) -> list[Stream]:
    nodes = ring.nodes
    asked = [
        stream(ring, nodes[i % len(nodes)], prompt, max_tokens, SMOLLM2)
        for i, prompt in enumerate(PROMPTS)
    ]
    return list(await asyncio.gather(*asked))


@pytest.mark.parametrize("engine", ["numpy", "onnx"])
async def test_three_processes_give_the_text_of_one_with_the_real_model(
    tmp_path: Path, engine: str
) -> None:
    real = ("--engine", engine, "--model", SMOLLM2)
    (one_folder := tmp_path / "one").mkdir()
    async with ring_of(one_folder, 1, *real) as ring:
        alone = await texts(ring, 10)
    async with ring_of(tmp_path, 3, *real) as ring:
        together = await texts(ring, 10)
        stages = (await ring.get(ring.nodes[0], "/api/v1/ring"))["stages"]
        own = [(await ring.get(node, "/api/v1/ring"))["stages"] for node in ring.nodes]
    assert [(each.text, each.finish) for each in together] == [
        (each.text, each.finish) for each in alone
    ]
    assert "Paris" in alone[0].text
    layers = [range(stage["start_layer"], stage["end_layer"] + 1) for stage in stages]
    assert len(layers) == 3
    assert [layer for each in layers for layer in each] == list(range(30))
    # A third of 134.5 million weights (float32, or a byte each), the embedding at both ends, the KV
    # cache set aside.
    least = {"numpy": 150, "onnx": 40}[engine]
    assert all(least < stage["planned_mib"] < 450 for stage in stages), stages
    # Each node knows its own hop to the next stage, on this machine well under a second.
    for node, seen in zip(ring.nodes, own, strict=True):
        assert {stage["node_id"] for stage in seen if 0 < stage.get("hop_ms", 0) < 1000} == {
            node.node_id
        }


KILLS = 20


async def killed_in_mid_answer(
    ring: Ring, alive: list[Served], victim: Served, at: int, prompt: Prompt
) -> float:
    """Kill the victim after `at` pieces of a stream through the first node; seconds to a new plan
    of the others.
    """
    running, seen = await under_way(
        ring, ring.nodes[0], prompt.text, prompt.tokens, prompt.model, enough=at
    )
    victim.signal(KILL)
    took = await ring.formed([node for node in alive if node is not victim])
    await running
    assert seen.whole, seen
    assert seen.text == prompt.expected
    return took


@dataclass(frozen=True)
class Prompt:
    """`expected`: the answer of a ring that nothing happens to."""

    text: str
    tokens: int
    model: str
    expected: str

    @classmethod
    async def tried(cls, ring: Ring, text: str, tokens: int, model: str) -> Prompt:
        answer = await stream(ring, ring.nodes[0], text, tokens, model)
        assert answer.whole, answer
        return cls(text, tokens, model, answer.text)


@pytest.mark.timeout(180)
async def test_twenty_random_kills_cost_no_token_and_each_new_plan_comes_within_three_seconds(
    tmp_path: Path,
) -> None:
    choose = random.Random(5)
    async with ring_of(tmp_path, 5, *DUMMY) as ring:
        prompt = await Prompt.tried(ring, "Tell me all.", 250, "dummy")
        alive, took = list(ring.nodes), []
        for _ in range(KILLS):
            victim = choose.choice(alive[1:])
            took.append(
                await killed_in_mid_answer(ring, alive, victim, choose.randrange(4, 120), prompt)
            )
            alive.remove(victim)
            # The first of which is the entry: all the others come back, together.
            if len(alive) == 2:
                for node in ring.nodes[1:]:
                    if node not in alive:
                        await node.ended()
                        node.start()
                await ring.formed()
                alive = list(ring.nodes)
        assert max(took) < 3.0, took
        for node in alive:
            assert (await ring.get(node, "/api/v1/requests"))["requests"] == []


@pytest.mark.parametrize("engine", ["numpy", "onnx"])
async def test_kills_in_mid_text_of_the_real_model_change_not_a_letter_of_it(
    tmp_path: Path, engine: str
) -> None:
    async with ring_of(tmp_path, 4, "--engine", engine, "--model", SMOLLM2) as ring:
        prompt = await Prompt.tried(ring, PROMPTS[3], 40, SMOLLM2)
        alive = list(ring.nodes)
        for victim, at in ((ring.nodes[2], 9), (ring.nodes[1], 23)):
            assert await killed_in_mid_answer(ring, alive, victim, at, prompt) < 3.0
            alive.remove(victim)


async def test_a_killed_entry_node_tells_its_clients_and_disturbs_no_others(tmp_path: Path) -> None:
    async with ring_of(tmp_path, 3, *DUMMY) as ring:
        entry, other, _ = ring.nodes
        expected = (await stream(ring, other, "Tell me all.", 400, "dummy")).text
        lost, doomed = await under_way(ring, entry, "Tell me all.", 4000, "dummy")
        kept, safe = await under_way(ring, other, "Tell me all.", 400, "dummy")
        entry.signal(KILL)
        begun = time.monotonic()
        await lost
        assert time.monotonic() - begun < 3.0
        assert doomed.error is not None
        await kept
        assert safe.whole
        assert safe.text == expected
        for node in ring.nodes[1:]:
            assert (await ring.get(node, "/api/v1/requests"))["requests"] == []


async def test_a_node_that_joins_and_one_that_leaves_disturb_no_stream(tmp_path: Path) -> None:
    (one_folder := tmp_path / "one").mkdir()
    async with ring_of(one_folder, 1, *DUMMY) as ring:
        prompt = await Prompt.tried(ring, "Tell me all.", 7800, "dummy")
    async with ring_of(tmp_path, 3, *DUMMY) as ring:
        entry, other, comes = ring.nodes
        comes.signal(TERM)
        assert await comes.ended() == 0
        await ring.formed([entry, other])
        running, seen = await under_way(ring, entry, prompt.text, prompt.tokens, prompt.model)
        comes.start()
        await ring.formed()
        assert not seen.done
        (request,) = (await ring.get(entry, "/api/v1/requests"))["requests"]
        assert request["attempts"] == 1  # it runs on where it began: no replay, so no pause
        other.signal(TERM)  # a stage of its plan
        assert await other.ended() == 0
        await running
        assert seen.whole, seen
        assert seen.text == prompt.expected


async def test_a_short_silence_changes_no_plan_but_a_slow_node_is_left_out_until_it_is_quick(
    tmp_path: Path,
) -> None:
    async with ring_of(tmp_path, 3, *DUMMY) as ring:
        entry, other, slow = ring.nodes
        prompt = await Prompt.tried(ring, "Tell me all.", 400, "dummy")
        epoch = (await ring.get(entry, "/api/v1/ring"))["epoch"]
        running, seen = await under_way(ring, entry, prompt.text, prompt.tokens, prompt.model)
        slow.signal(STOP)
        # Two heartbeats and more unanswered; its kernel still answers at the port.
        await asyncio.sleep(2.5)
        topology = await ring.get(entry, "/api/v1/topology")
        assert slow.node_id in {node["id"] for node in topology["nodes"]}
        assert (await ring.get(entry, "/api/v1/ring"))["epoch"] == epoch
        assert not seen.done
        # It stays so: five seconds of slowness, and the others plan without it. The stream moves
        # there.
        took = await ring.formed([entry, other], timeout=12)
        await running
        assert seen.whole, seen
        assert seen.text == prompt.expected
        assert took < 10
        slow.signal(CONT)
        await ring.formed(timeout=40)
        again = await stream(ring, slow, prompt.text, prompt.tokens, prompt.model)
        assert again.text == prompt.expected


@pytest.mark.timeout(180)
async def test_a_rolling_restart_under_eight_clients_fails_and_truncates_nothing(
    tmp_path: Path,
) -> None:
    async with ring_of(tmp_path, 3, *DUMMY, "--drain-seconds", "20") as ring:
        expected = (await stream(ring, ring.nodes[0], "Tell me all.", 100, "dummy")).text
        results: list[Stream] = []
        stop = asyncio.Event()
        clients = [
            asyncio.create_task(keep_asking(ring, number, results, stop)) for number in range(8)
        ]
        for node in ring.nodes:
            before = len(results)
            await until(lambda before=before: len(results) >= before + 16)
            node.signal(TERM)
            assert await node.ended() == 0
            node.start()
            await ring.formed()
        stop.set()
        await asyncio.gather(*clients)
    assert [each for each in results if not each.whole] == []
    assert {each.text for each in results} == {expected}


async def keep_asking(ring: Ring, number: int, results: list[Stream], stop: asyncio.Event) -> None:
    """As a client behind a Service: a node that does not take the request (503, port closed) is not
    the only one.
    """
    turn = number
    while not stop.is_set():
        turn += 1
        node: Served = ring.nodes[turn % 3]
        seen = await stream(ring, node, "Tell me all.", 100, "dummy")
        if seen.refused == 503 or (seen.error is not None and seen.pieces == 0):
            await asyncio.sleep(0.05)
            continue
        results.append(seen)
