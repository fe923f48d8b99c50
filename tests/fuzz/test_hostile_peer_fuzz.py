"""A peer that passed the hello and then sends whatever it likes: it can lose its own requests,
nobody else's.
"""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest
from ring_nodes import RecordingHandler, make_handle
from waiting import eventually

from exo.inference.generation import GenerationRequest
from exo.inference.sampling.params import SamplingParams
from exo.networking.grpc.grpc_peer_handle import GRPCPeerHandle
from exo.networking.hello import Membership
from exo.networking.messages import Close, Failed, Forward, Message, Open, Token
from exo.node.build import build_node
from exo.node.node import Node
from exo.node.settings import NodeSettings

MEMBERSHIP = Membership(cluster="default")


def request(number: int, tokens: int = 60) -> GenerationRequest:
    return GenerationRequest(
        request_id=f"r{number}",
        model_id="dummy",
        prompt_tokens=(1, 2, 3),
        max_tokens=tokens,
        params=SamplingParams(temperature=0.0),
        ignore_eos=True,
    )


async def answer(node: Node, number: int) -> tuple[int, ...]:
    tokens: list[int] = []
    async for chunk in node.process_tokens(request(number)):
        tokens += chunk.tokens
    return tuple(tokens)


async def handled(evil: GRPCPeerHandle, told: RecordingHandler, number: int) -> None:
    """Until the node has dealt with all that was sent: the last message is of an epoch that is
    answered.
    """
    mark = Forward(
        sequence_id=f"evil.1/mark{number}/1",
        epoch="nowhere",
        position=0,
        values=np.zeros((1, 1), np.float32),
        sample=True,
    )
    await evil.send(mark)
    await told.until(
        lambda: any(message.sequence_id == mark.sequence_id for _, message in told.messages)
    )


def anything(rng: random.Random, epoch: str, victim: str) -> Message:
    """Any message that the codec lets through, often with the ids of somebody else's sequences."""
    ids = [victim, victim, "evil.1/1/1", "x", f"evil.1/{rng.randrange(99)}/1"]
    head = {"sequence_id": rng.choice(ids), "epoch": rng.choice([epoch, epoch, "other"])}
    position = rng.choice([0, 1, 3, 4, 2**31 - 10])
    match rng.randrange(6):
        case 0:
            entry = rng.choice(["evil", "good", "x"])
            tokens = tuple(rng.choices([0, 1, 2**31 - 1], k=rng.randrange(1, 9)))
            params = SamplingParams(
                temperature=rng.choice([0.0, 1e6]), top_k=rng.choice([0, 2**31 - 1])
            )
            return Open(
                **head,
                entry=entry,
                tokens=tokens,
                prompt_length=rng.randrange(len(tokens) + 1),
                params=params,
                max_length=rng.choice([0, 1, 2**31 - 1]),
            )
        case 1:
            shape = (rng.randrange(1, 4), rng.choice([1, 4, 8, 576]))
            values = np.full(shape, rng.choice([0.0, np.nan, np.inf]), np.float32)
            return Forward(**head, position=position, values=values, sample=rng.random() < 0.5)
        case 2:
            values = np.array(rng.choices([0, 1, 2**31 - 1], k=3), np.int64)
            return Forward(**head, position=0, values=values, sample=True)
        case 3:
            return Token(**head, position=position, token=rng.choice([0, 7, 2**31 - 1]))
        case 4:
            return Close(**head)
        case _:
            return Failed(**head, node="good", reason="because", retryable=rng.random() < 0.5)


@pytest.mark.parametrize("seed", range(3))
async def test_the_requests_of_others_are_untouched_and_nothing_is_left_behind(seed: int) -> None:
    rng = random.Random(seed)
    settings = NodeSettings(
        node_id="good",
        model="dummy",
        engine="dummy",
        host="127.0.0.1",
        grpc_port=0,
        drain_seconds=2.0,
    )
    node = build_node(settings)
    async with node:
        expected = await answer(node, 0)
        assert len(expected) == 60
        epoch = node.view.own_offer().epoch
        prefix = node.frontend.prefix
        told = RecordingHandler("evil", model_id="dummy")
        evil = make_handle(told, node.server.port, membership=MEMBERSHIP)
        async with evil:
            for number in range(1, 7):
                # The id that the next request will have: it can be guessed.
                victim = f"{prefix}/{number + 1}/1"
                for _ in range(60):  # some before the request, some while it runs
                    await evil.send(anything(rng, epoch, victim))
                await handled(evil, told, number)
                running = asyncio.create_task(answer(node, number))
                for _ in range(60):
                    await evil.send(anything(rng, epoch, victim))
                    await asyncio.sleep(0)
                async with asyncio.timeout(20):
                    assert await running == expected
            assert evil.is_connected()
            assert (await evil.hello()).node_id == "good"
        await eventually(lambda: node.stage.live() == 0)
        assert node.describe_requests() == []
        assert await answer(node, 99) == expected
