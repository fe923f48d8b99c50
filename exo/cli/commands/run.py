"""`exo run`: one prompt, one answer, no server and no port. Standard output has only the answer."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np

from exo.cli.failures import USAGE, Failure, explain
from exo.cli.loading import loaded_engine
from exo.inference.engines.engine import Engine
from exo.inference.engines.inference_engine import Step
from exo.inference.errors import ContextExceeded, SequenceLost
from exo.inference.sampling.params import SamplingParams
from exo.inference.sampling.sampling import sample
from exo.inference.shard import Shard
from exo.inference.text.chat_template import encode_chat
from exo.inference.text.detokenizer import IncrementalDetokenizer

_ID = "run"


@dataclass(frozen=True, slots=True)
class Ask:
    model: str
    prompt: str
    system: str | None
    max_tokens: int
    temperature: float
    seed: int | None
    engine: str

    def messages(self) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.prompt}]


def run_once(ask: Ask) -> int:
    if ask.prompt == "-":
        if sys.stdin.isatty():
            raise Failure("nothing to ask: give --prompt TEXT, or pipe it in", USAGE)
        ask = Ask(
            **{**{name: getattr(ask, name) for name in Ask.__slots__}, "prompt": sys.stdin.read()}
        )
    if not ask.prompt.strip():
        raise Failure("nothing to ask: the prompt is empty", USAGE)
    try:
        asyncio.run(_answer(ask))
    except BrokenPipeError:
        raise
    except Exception as error:
        raise explain(error) from error
    return 0


async def _answer(ask: Ask) -> None:
    async with loaded_engine(ask.model, ask.engine) as (engine, shard):
        async for text in generate(engine, shard, ask):
            sys.stdout.write(text)
            sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


async def generate(engine: Engine, shard: Shard, ask: Ask) -> AsyncIterator[str]:
    """The text of the answer, token by token; half a character waits for its other half."""
    tokenizer, config = engine.require_tokenizer(), engine.config
    assert config is not None  # it is loaded
    tokens = encode_chat(tokenizer, ask.messages())
    if len(tokens) >= config.context_length:
        raise ContextExceeded(len(tokens), config.context_length)
    prompt_length = len(tokens)
    params = SamplingParams(
        temperature=ask.temperature, seed=secrets.randbits(63) if ask.seed is None else ask.seed
    )
    text = IncrementalDetokenizer(tokenizer)
    values, position = np.array(tokens, dtype=np.int64), 0
    for _ in range(min(ask.max_tokens, config.context_length - prompt_length)):
        try:
            (logits,) = await engine.infer_batch(shard, [Step(_ID, values, position)])
        # evicted, or grown past the short factors of its rotary embedding: all of it again.
        except SequenceLost:
            (logits,) = await engine.infer_batch(
                shard, [Step(_ID, np.array(tokens, dtype=np.int64), 0)]
            )
        position = len(tokens)
        token, _, _ = sample(logits[0], params, tokens, prompt_length, position)
        if token in config.eos_ids:
            break
        tokens.append(token)
        values = np.array([token], dtype=np.int64)
        yield text.push(token)
    yield text.flush()
