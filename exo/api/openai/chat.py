"""`POST /v1/chat/completions`: the conversation as a prompt, tool calls in the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response

from exo.api.openai import params, responses
from exo.api.openai.reply import ChoiceStream, Reply, answer
from exo.api.openai.responses import CompletedChoice, Json
from exo.api.openai.schema import ChatRequest
from exo.api.openai.tools import ToolCall, may_hold_calls, parse_calls
from exo.inference.generation import GenerationChunk
from exo.inference.sampling import constraints


async def chat_completions(request: Request) -> Response:
    return await answer(request, ChatReply)


class ChatReply(Reply[ChatRequest]):
    BODY = ChatRequest
    ID_PREFIX = "chatcmpl"
    OBJECT = "chat.completion"
    CHUNK_OBJECT = "chat.completion.chunk"

    def param_names(self) -> Mapping[str, str]:
        """A schema comes from the tools when the answer must be a call, else from
        `response_format`.
        """
        schema = "tools" if params.is_forced(self.body) else "response_format"
        return {"prompt": "messages", constraints.FIELD: schema}

    async def prompts(self) -> Sequence[tuple[int, ...]]:
        messages, tools = params.chat_messages(self.body.messages), params.chat_tools(self.body)
        return [await self._context.backend.render_chat(self.body.model, messages, tools)]

    def choice(self, index: int, made: CompletedChoice) -> Json:
        text, calls = self.read(index, made.text)
        return responses.chat_choice(
            index, made, text, calls, self.token_bytes, logprobs=bool(self.body.logprobs)
        )

    def choice_stream(self, index: int) -> ChoiceStream:
        return _ChatStream(self, index)

    @property
    def tool_names(self) -> set[str]:
        """The tools that the answer may call."""
        if self.body.tool_choice == "none":
            return set()
        return {tool.function.name for tool in self.body.tools or []}

    def read(self, index: int, text: str) -> tuple[str, list[ToolCall]]:
        """The text of a choice and the tool calls that are written in it."""
        if not self.tool_names:
            return text, []
        return parse_calls(text, self.tool_names, id_prefix=f"{self._call_id}_{index}_")

    @property
    def _call_id(self) -> str:
        return self.envelope.id.removeprefix(f"{self.ID_PREFIX}-")[-24:]


class _ChatStream(ChoiceStream):
    """Text that may yet become a tool call is held back until it is known to be none."""

    def __init__(self, reply: ChatReply, index: int) -> None:
        self._reply = reply
        self._index = index
        self._watches_for_calls = bool(reply.tool_names)
        self._held = ""
        self._held_chunks: list[GenerationChunk] = []
        self._sent = False

    def opening(self) -> list[Json]:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [responses.chat_delta(self._index, delta)]

    def take(self, chunk: GenerationChunk) -> list[Json]:
        self._held += chunk.text
        self._held_chunks.append(chunk)
        if chunk.finish_reason is not None:
            return self._closing(chunk)
        if not self._held or self._may_hold_calls():
            return []
        return [self._flush(self._held)]

    def _may_hold_calls(self) -> bool:
        return self._watches_for_calls and may_hold_calls(self._held, at_start=not self._sent)

    def _flush(self, text: str) -> Json:
        logprobs = None
        if self._reply.body.logprobs:
            logprobs = responses.chat_logprobs(self._held_chunks, self._reply.token_bytes)
        self._held, self._held_chunks, self._sent = "", [], True
        return responses.chat_delta(self._index, {"content": text}, logprobs=logprobs)

    def _closing(self, chunk: GenerationChunk) -> list[Json]:
        text, calls = self._reply.read(self._index, self._held)
        out = [self._flush(text)] if text or any(c.logprob for c in self._held_chunks) else []
        out += [
            responses.chat_delta(self._index, {"tool_calls": [{"index": at, **call.to_dict()}]})
            for at, call in enumerate(calls)
        ]
        finish = "tool_calls" if calls else responses.finish_reason(chunk.finish_reason)
        return [*out, responses.chat_delta(self._index, {}, finish=finish)]
