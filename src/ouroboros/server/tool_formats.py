"""How models write calls of functions.

hermes    <tool_call>{"name": …, "arguments": {…}}</tool_call>       (Qwen, Hermes)
mistral   [TOOL_CALLS][{"name": …, "arguments": {…}}, …]             or [TOOL_CALLS]name{…}, and without the marker
llama3    {"name": …, "parameters": {…}}; …                          with or without <|python_tag|>
generic   any of these
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FORMATS", "Format", "format_of"]


@dataclass(frozen=True, slots=True)
class Format:
    """``opening``: texts that calls begin with, ``closing``: that a call may end with. ``bare``: calls that begin the
    text need none."""

    opening: tuple[str, ...]
    closing: tuple[str, ...]
    bare: bool


FORMATS = {
    "hermes": Format(("<tool_call>",), ("</tool_call>",), False),
    "mistral": Format(("[TOOL_CALLS]",), (), True),
    "llama3": Format(("<|python_tag|>",), ("<|eom_id|>",), True),
    "generic": Format(("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>"), ("</tool_call>",), True),
}


def format_of(template: str | None) -> str:
    """The name of the format that a chat template teaches its model."""
    text = template or ""
    for name, mark in (("hermes", "<tool_call>"), ("mistral", "[TOOL_CALLS]"), ("llama3", '"parameters"')):
        if mark in text or (name == "llama3" and "python_tag" in text):
            return name
    return "generic"
