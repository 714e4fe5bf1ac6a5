"""The answers to chats and completions: their bodies, whole and in chunks."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from ouroboros.server.asked import Asked
from ouroboros.server.output import Delta, Output, merged, usage_of
from ouroboros.server.schema import ChatRequest, CompletionRequest
from ouroboros.server.service import Run, Service
from ouroboros.server.stream import DONE, event
from ouroboros.server.tools import Arguments, Begin, CallParser, Content

__all__ = ["Answer"]


class Answer:
    """To one chat or completion.

    Args:
        chat: whether it is a chat. sources: whether each token's source is told. usage: in a stream, whether it ends
            with the tokens' counts.
    """

    def __init__(
        self, service: Service, run: Run, asked: Asked, request: ChatRequest | CompletionRequest, name: str
    ) -> None:
        self._service, self._run, self._request = service, run, request
        self._chat = isinstance(request, ChatRequest)
        self._sources = bool(request.return_sources)
        self._usage = request.stream_options is not None and bool(request.stream_options.include_usage)
        self._logprobs = asked.params.logprobs is not None
        form = service.tool_format
        self._outputs = [
            Output(
                i,
                ticket,
                service,
                CallParser(form, asked.functions) if asked.functions else None,
                self._logprobs,
                self._sources,
            )
            for i, ticket in enumerate(run.tickets)
        ]
        self._head = {
            "id": ("chatcmpl-" if self._chat else "cmpl-") + name,
            "object": "chat.completion" if self._chat else "text_completion",
            "created": int(time.time()),
            "model": service.settings.model_name,
            "system_fingerprint": service.system,
        }

    @property
    def outputs(self) -> list[Output]:
        return self._outputs

    async def whole(self) -> dict[str, Any]:
        """The body."""
        async for _ in merged(self._outputs):
            pass
        choices = [self._message(output) if self._chat else self._text(output) for output in self._outputs]
        return {**self._head, "choices": choices, "usage": usage_of(self._run, self._outputs)}

    async def events(self) -> AsyncGenerator[bytes]:
        """Of the stream."""
        head = {**self._head, "object": "chat.completion.chunk" if self._chat else "text_completion"}
        usage: dict[str, Any] = {"usage": None} if self._usage else {}
        if self._chat:
            for output in self._outputs:
                begin = {"index": output.index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                yield event({**head, "choices": [{**begin, "logprobs": None}], **usage})
        async for output, delta in merged(self._outputs):
            for choice in self._choices(output, delta):
                yield event({**head, "choices": [choice], **usage})
        if self._usage:
            yield event({**head, "choices": [], "usage": usage_of(self._run, self._outputs)})
        yield DONE

    # --- chats ---

    def _message(self, output: Output) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": output.text, "refusal": None}
        if output.calls:
            message["content"] = output.text or None
            message["tool_calls"] = [
                {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
                for c in output.calls
            ]
        found: dict[str, Any] = {"index": output.index, "message": message, "finish_reason": output.finish}
        found["logprobs"] = {"content": output.logprobs, "refusal": None} if self._logprobs else None
        return found | ({"sources": output.sources} if self._sources else {})

    def _choices(self, output: Output, delta: Delta) -> list[dict[str, Any]]:
        """The chunks of what has come: of one kind each, log-probabilities and sources with the first."""
        more = self._more(delta)
        if not self._chat:
            text, finish = delta.content, delta.finish
            if not (text or finish or more):
                return []
            logprobs = self._flat(delta.logprobs, len(output.text) - len(text)) if self._logprobs else None
            sources = {name: value for name, value in more.items() if name == "sources"}
            return [{"index": output.index, "text": text, "finish_reason": finish, "logprobs": logprobs, **sources}]
        deltas = [_delta(one) for one in delta.events] or ([{}] if more else [])
        found: list[dict[str, Any]] = [
            {"index": output.index, "delta": one, "finish_reason": None, "logprobs": None} for one in deltas
        ]
        if more:
            found[0] |= more
        if delta.finish is not None:
            found.append({"index": output.index, "delta": {}, "finish_reason": delta.finish, "logprobs": None})
        return found

    def _more(self, delta: Delta) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._logprobs and delta.logprobs:
            found["logprobs"] = {"content": delta.logprobs, "refusal": None}
        if self._sources and delta.sources:
            found["sources"] = delta.sources
        return found

    # --- completions ---

    def _text(self, output: Output) -> dict[str, Any]:
        logprobs = self._flat(output.logprobs, 0) if self._logprobs else None
        found = {"index": output.index, "text": output.text, "finish_reason": output.finish, "logprobs": logprobs}
        return found | ({"sources": output.sources} if self._sources else {})

    def _flat(self, entries: Sequence[dict[str, Any]], offset: int) -> dict[str, Any]:
        """As completions have them: columns. ``offset``: characters of the text before."""
        offsets = []
        for entry in entries:
            offsets.append(offset)
            offset += len(entry["token"])
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in entries],
            "text_offset": offsets,
        }


def _delta(one: Content | Begin | Arguments) -> dict[str, Any]:
    if isinstance(one, Content):
        return {"content": one.text}
    if isinstance(one, Begin):
        function = {"name": one.name, "arguments": ""}
        return {"tool_calls": [{"index": one.index, "id": one.id, "type": "function", "function": function}]}
    return {"tool_calls": [{"index": one.index, "function": {"arguments": one.text}}]}
