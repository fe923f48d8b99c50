"""Answers as OpenAI's JSON, whole and in chunks. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from exo.api.openai.tools import ToolCall
from exo.inference.generation import FinishReason, GenerationChunk, TokenLogprob

Json = dict[str, Any]
TokenBytes = Callable[[int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What every object of one answer carries."""

    id: str
    created: int
    model: str

    def wrap(self, kind: str, choices: list[Json], **rest: Any) -> Json:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **rest, "system_fingerprint": None}


@dataclass(slots=True)
class CompletedChoice:
    """One sequence's answer as it grows."""

    text: str = ""
    finish: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    chunks: list[GenerationChunk] = field(default_factory=list)

    def add(self, chunk: GenerationChunk) -> None:
        self.text += chunk.text
        self.finish = chunk.finish_reason or self.finish
        self.prompt_tokens = chunk.prompt_tokens
        self.completion_tokens = chunk.completion_tokens
        if chunk.logprob is not None:
            self.chunks.append(chunk)


def usage(choices: Sequence[CompletedChoice], *, per_prompt: int) -> Json:
    """`per_prompt`: how many choices each prompt has; its tokens count once for all of them."""
    prompt = sum(choice.prompt_tokens for choice in choices[::per_prompt])
    completion = sum(choice.completion_tokens for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def finish_reason(reason: FinishReason | None) -> str | None:
    """OpenAI knows no answer that was cancelled: like one that reached its `length`, it was cut."""
    if reason is None:
        return None
    return "stop" if reason is FinishReason.STOP else "length"


def chat_logprobs(chunks: Sequence[GenerationChunk], token_bytes: TokenBytes) -> Json | None:
    content = []
    for chunk in chunks:
        if chunk.logprob is not None:
            top = [_entry(alternative, token_bytes) for alternative in chunk.top_logprobs]
            content.append({**_entry(chunk.logprob, token_bytes), "top_logprobs": top})
    return {"content": content, "refusal": None} if content else None


def _entry(one: TokenLogprob, token_bytes: TokenBytes) -> Json:
    raw = token_bytes(one.token)
    # JSON has no infinity; this number is what OpenAI sends for "impossible".
    return {
        "token": raw.decode(errors="replace"),
        "logprob": max(one.logprob, -9999.0),
        "bytes": list(raw),
    }


def text_logprobs(
    chunks: Sequence[GenerationChunk], token_bytes: TokenBytes, *, offset: int
) -> Json | None:
    """The legacy form; `offset` is the position of the first token's text."""
    listed: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for chunk in chunks:
        if chunk.logprob is None:
            continue
        text = token_bytes(chunk.logprob.token).decode(errors="replace")
        listed["tokens"].append(text)
        listed["token_logprobs"].append(max(chunk.logprob.logprob, -9999.0))
        listed["top_logprobs"].append(
            {
                token_bytes(t.token).decode(errors="replace"): max(t.logprob, -9999.0)
                for t in chunk.top_logprobs
            }
        )
        listed["text_offset"].append(offset)
        offset += len(text)
    return listed if listed["tokens"] else None


def chat_choice(
    index: int,
    choice: CompletedChoice,
    text: str,
    calls: Sequence[ToolCall],
    token_bytes: TokenBytes,
    *,
    logprobs: bool,
) -> Json:
    message: Json = {
        "role": "assistant",
        "content": text if text or not calls else None,
        "refusal": None,
    }
    if calls:
        message["tool_calls"] = [call.to_dict() for call in calls]
    return {
        "index": index,
        "message": message,
        "logprobs": (chat_logprobs(choice.chunks, token_bytes) or {"content": [], "refusal": None})
        if logprobs
        else None,
        "finish_reason": "tool_calls" if calls else finish_reason(choice.finish),
    }


def chat_delta(
    index: int, delta: Json, *, finish: str | None = None, logprobs: Json | None = None
) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def text_choice(index: int, text: str, *, finish: str | None, logprobs: Json | None) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
