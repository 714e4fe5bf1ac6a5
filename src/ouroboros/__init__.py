"""Ouroboros decoding: large language models answer faster without changing a token of what they say.

The public names; everything else may change. ``import ouroboros`` is light: torch is loaded when it is first needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ouroboros._version import __version__
from ouroboros.config import (
    METHODS,
    AutoregressiveOptions,
    LookaheadOptions,
    OuroborosOptions,
    PromptLookupOptions,
    SamplingParams,
    SpeculativeOptions,
    SuffixDecodingOptions,
    TokenRecyclingOptions,
)
from ouroboros.errors import InputError, LoadError, ModelError, OuroborosError, PoolFileError

if TYPE_CHECKING:
    from ouroboros.generate import Decoder, Session
    from ouroboros.integrations.generate import custom_generate
    from ouroboros.integrations.ray_serve import ray_app
    from ouroboros.pairing import load
    from ouroboros.phrases.pool import PhrasePool
    from ouroboros.prompts import Chat
    from ouroboros.serving.engine import Engine
    from ouroboros.serving.ticket import Ticket
    from ouroboros.stats import Stats
    from ouroboros.stream import Chunk, GenerationResult, Stream

__all__ = [
    "METHODS",
    "AutoregressiveOptions",
    "Chat",
    "Chunk",
    "Decoder",
    "Engine",
    "GenerationResult",
    "InputError",
    "LoadError",
    "LookaheadOptions",
    "ModelError",
    "OuroborosError",
    "OuroborosOptions",
    "PhrasePool",
    "PoolFileError",
    "PromptLookupOptions",
    "SamplingParams",
    "Session",
    "SpeculativeOptions",
    "Stats",
    "Stream",
    "SuffixDecodingOptions",
    "Ticket",
    "TokenRecyclingOptions",
    "__version__",
    "custom_generate",
    "load",
    "ray_app",
]

_LAZY = {
    "Chat": "ouroboros.prompts",
    "Chunk": "ouroboros.stream",
    "Decoder": "ouroboros.generate",
    "Engine": "ouroboros.serving.engine",
    "GenerationResult": "ouroboros.stream",
    "PhrasePool": "ouroboros.phrases.pool",
    "Session": "ouroboros.generate",
    "Stats": "ouroboros.stats",
    "Stream": "ouroboros.stream",
    "Ticket": "ouroboros.serving.ticket",
    "custom_generate": "ouroboros.integrations.generate",
    "load": "ouroboros.pairing",
    "ray_app": "ouroboros.integrations.ray_serve",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ouroboros' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
