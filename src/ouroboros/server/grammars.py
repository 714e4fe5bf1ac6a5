"""What an answer must be, as a grammar: a JSON text, one that fits a schema, or a call of a function."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ouroboros.server.asking import check_size
from ouroboros.server.errors import APIError
from ouroboros.server.schema import NamedTool, ResponseFormat, Tool
from ouroboros.server.service import Service

__all__ = ["choose_tools", "format_grammar", "plain"]


def plain(tool: Tool) -> dict[str, Any]:
    """As chat templates take it."""
    return tool.model_dump(exclude_none=True, exclude={"function": {"strict"}})


def choose_tools(
    tools: Sequence[Tool], choice: str | NamedTool | None, service: Service
) -> tuple[list[Tool], dict[str, Any] | None]:
    """The tools that the model is told of, and the grammar of a call where there must be one.

    Raises:
        APIError: a choice among tools that are not there, or schemas that are too large.
    """
    check_size("tools", json.dumps([plain(tool) for tool in tools]), service.settings)
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise APIError(400, "two tools have the same name", "tools")
    if choice is None or choice == "auto":
        return list(tools), None
    if choice == "none":
        return [], None
    if not tools:
        raise APIError(400, "tool_choice needs tools", "tool_choice")
    wanted = [choice.function.name] if isinstance(choice, NamedTool) else names
    functions = [(tool.function.name, tool.function.parameters) for tool in tools if tool.function.name in wanted]
    if not functions:
        raise APIError(400, f"tool_choice names {wanted[0]!r:.70}, which is not among the tools", "tool_choice")
    marked = service.tool_format == "hermes"
    return list(tools), grammar_of(list(functions), marked)


def format_grammar(form: ResponseFormat | None, service: Service) -> dict[str, Any] | None:
    """The grammar of a response format; None for text.

    Raises:
        APIError: there is no schema, or a schema too large.
    """
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"json_schema": bounded({"type": "object"})}
    schema = None if form.json_schema is None else form.json_schema.schema_
    if schema is None:
        raise APIError(400, "response_format of type json_schema needs a json_schema with a schema", "response_format")
    check_size("response_format", json.dumps(schema), service.settings)
    return {"json_schema": bounded(schema)}


def bounded(schema: Mapping[str, object]) -> dict[str, object]:
    """The same schema, with a bound of the white space between tokens: a model may like it too well."""
    return {"x-guidance": {"whitespace_pattern": r"\n?[ ]{0,24}"}, **schema}


def call_schema(name: str, parameters: object) -> dict[str, object]:
    """The JSON schema of a call of this function."""
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": parameters or {"type": "object"}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def grammar_of(functions: list[tuple[str, object]], marked: bool) -> dict[str, object]:
    """The grammar of one call of one of these functions (name, JSON schema of its parameters).

    Args:
        marked: between ``<tool_call>`` and ``</tool_call>``, as hermes has it; else the object alone.
    """
    schemas = [call_schema(name, parameters) for name, parameters in functions]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    schema = bounded(schema)
    if not marked:
        return {"json_schema": schema}
    return {"lark": f'start: "<tool_call>\\n" call "\\n</tool_call>"\ncall: %json {json.dumps(schema)}'}
