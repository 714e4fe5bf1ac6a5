"""What a user may choose: sampling parameters of a request and options of a method, as frozen dataclasses.

Every check is in a ``__post_init__``. The command line takes its defaults and its ``--set name=value`` conversions from
the fields.
"""

from ouroboros.config.options import (
    METHODS,
    AutoregressiveOptions,
    LookaheadOptions,
    MethodOptions,
    OuroborosOptions,
    PromptLookupOptions,
    SpeculativeOptions,
    SuffixDecodingOptions,
    TokenRecyclingOptions,
    options_for,
    options_from_strings,
)
from ouroboros.config.parameters import GRAMMARS, MAX_SEED, Processor, SamplingParams

__all__ = [
    "GRAMMARS",
    "MAX_SEED",
    "METHODS",
    "AutoregressiveOptions",
    "LookaheadOptions",
    "MethodOptions",
    "OuroborosOptions",
    "Processor",
    "PromptLookupOptions",
    "SamplingParams",
    "SpeculativeOptions",
    "SuffixDecodingOptions",
    "TokenRecyclingOptions",
    "options_for",
    "options_from_strings",
]
