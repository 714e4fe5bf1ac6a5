"""The answer of the Responses API as items, whole or as numbered events.

The same builder makes the stream and the whole answer, so that items have the same ids in both.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from typing import Any

from ouroboros.server.asked import Asked
from ouroboros.server.output import Delta, Output, merged, usage_of
from ouroboros.server.schema_responses import ResponsesRequest
from ouroboros.server.service import Run, Service
from ouroboros.server.stream import event
from ouroboros.server.tools import Arguments, Begin, CallParser, Content

__all__ = ["Response"]


class Response:
    """To one request."""

    def __init__(self, service: Service, run: Run, asked: Asked, request: ResponsesRequest, name: str) -> None:
        parser = CallParser(service.tool_format, asked.functions) if asked.functions else None
        self._run, self._name, self._number = run, name, 0
        self._logprobs = asked.params.logprobs is not None
        self._output = Output(0, run.tickets[0], service, parser, self._logprobs)
        self._items: list[dict[str, Any]] = []
        self._open = False  # the last item goes on
        form: dict[str, Any] = {"type": "text"}
        if request.text is not None and request.text.format is not None:
            form = request.text.format.model_dump(by_alias=True, exclude_none=True)
        choice: Any = request.tool_choice or "auto"
        self._head = {
            "id": f"resp_{name}",
            "object": "response",
            "created_at": int(time.time()),
            "model": service.settings.model_name,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": asked.params.temperature,
            "text": {"format": form},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [
                {"parameters": None, "strict": False, **t.model_dump(exclude_none=True)} for t in request.tools or []
            ],
            "top_logprobs": asked.params.logprobs or 0,
            "top_p": asked.params.top_p,
            "truncation": "disabled",
            "background": False,
            "user": request.user,
        }

    @property
    def outputs(self) -> list[Output]:
        return [self._output]

    async def whole(self) -> dict[str, Any]:
        """The body."""
        async for _, delta in merged([self._output]):
            self._take(delta)
        self._close_item()
        return self._body()

    async def events(self) -> AsyncGenerator[bytes]:
        """Of the stream."""
        yield self._event("response.created", response=self._body())
        yield self._event("response.in_progress", response=self._body())
        async for _, delta in merged([self._output]):
            for kind, values in self._take(delta):
                yield self._event(kind, **values)
        for kind, values in self._close_item():
            yield self._event(kind, **values)
        body = self._body()
        yield self._event(f"response.{body['status']}", response=body)

    def _event(self, kind: str, **values: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **values}, kind)

    def _body(self) -> dict[str, Any]:
        finish = self._output.finish
        status = "in_progress" if finish is None else "incomplete" if finish == "length" else "completed"
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        usage = None
        if finish is not None:
            found = usage_of(self._run, [self._output])
            usage = {
                "input_tokens": found["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": found["prompt_tokens_details"]["cached_tokens"]},
                "output_tokens": found["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": found["total_tokens"],
            }
        rest = {"status": status, "error": None, "incomplete_details": details, "usage": usage}
        return {**self._head, **rest, "output": json.loads(json.dumps(self._items))}

    # --- items ---

    def _take(self, delta: Delta) -> list[tuple[str, dict[str, Any]]]:
        """What has come, as events."""
        found: list[tuple[str, dict[str, Any]]] = []
        logprobs = delta.logprobs
        for one in delta.events:
            if isinstance(one, Content):
                found += self._content(one.text, logprobs)
                logprobs = []
            elif isinstance(one, Begin):
                found += self._close_item()
                item = {"id": f"fc_{self._name}_{len(self._items)}", "type": "function_call", "status": "in_progress"}
                found += self._add({**item, "call_id": one.id, "name": one.name, "arguments": ""})
            else:
                found.append(self._arguments(one))
        if self._output.finish is not None and not self._items:
            found += self._content("", logprobs)
        return found

    def _content(self, text: str, logprobs: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
        found: list[tuple[str, dict[str, Any]]] = []
        if not self._open or self._items[-1]["type"] != "message":
            found += self._close_item()
            item = {"id": f"msg_{self._name}_{len(self._items)}", "type": "message", "status": "in_progress"}
            found += self._add({**item, "role": "assistant", "content": []})
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self._items[-1]["content"].append(part)
            found.append(("response.content_part.added", {**self._place(), "part": json.loads(json.dumps(part))}))
        part = self._items[-1]["content"][0]
        part["text"] += text
        part["logprobs"] += logprobs
        if text:
            values = {**self._place(), "delta": text, "logprobs": logprobs}
            found.append(("response.output_text.delta", values))
        return found

    def _arguments(self, one: Arguments) -> tuple[str, dict[str, Any]]:
        item = self._items[-1]
        item["arguments"] += one.text
        values = {"item_id": item["id"], "output_index": len(self._items) - 1, "delta": one.text}
        return "response.function_call_arguments.delta", values

    def _add(self, item: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        self._items.append(item)
        self._open = True
        shown = json.loads(json.dumps(item))
        return [("response.output_item.added", {"output_index": len(self._items) - 1, "item": shown})]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, "content_index": 0}

    def _close_item(self) -> list[tuple[str, dict[str, Any]]]:
        if not self._open:
            return []
        self._open = False
        item, index = self._items[-1], len(self._items) - 1
        item["status"] = "incomplete" if self._output.finish == "length" else "completed"
        found: list[tuple[str, dict[str, Any]]] = []
        if item["type"] == "message":
            part = item["content"][0]
            text = {"text": part["text"], "logprobs": part["logprobs"]}
            found.append(("response.output_text.done", {**self._place(), **text}))
            found.append(("response.content_part.done", {**self._place(), "part": json.loads(json.dumps(part))}))
        else:
            done = {"item_id": item["id"], "output_index": index, "name": item["name"], "arguments": item["arguments"]}
            found.append(("response.function_call_arguments.done", done))
        return [*found, ("response.output_item.done", {"output_index": index, "item": json.loads(json.dumps(item))})]
