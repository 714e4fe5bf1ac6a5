"""Structured output: a grammar as a logits processor, and the tokens that it forces.

The grammar engine is llguidance (extra ``grammar``). States are kept per text, since a tree asks for many texts that
share beginnings; a state is a function of the text alone, so that the constraint is exact at every tree node. Where the
grammar leaves a single continuation, ``forced`` spells it in tokens, and these are drafted without a draft model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ouroboros.errors import InputError
from ouroboros.text import Tokenizer

__all__ = ["Grammar"]

_STATES = 512  # texts whose state is kept


class Grammar:
    """The constraint of one request (a ``processor`` of SamplingParams, by its call).

    Args:
        source: one entry, ``json_schema``, ``regex`` or ``lark``, and its text (or a JSON schema as a mapping).
        tokenizer: of the target model. vocab_size: of the target model. stop_ids: its end-of-sequence tokens.
        prompt_length: tokens of a history that come before the constrained text.

    Raises:
        InputError: unknown kind, an invalid grammar, or llguidance is not installed.
    """

    def __init__(
        self,
        source: Mapping[str, Any],
        tokenizer: Tokenizer,
        vocab_size: int,
        stop_ids: frozenset[int],
        prompt_length: int,
    ) -> None:
        try:
            import llguidance
            import llguidance.hf
        except ImportError:
            raise InputError("grammar needs llguidance: pip install 'ouroboros-decoding[grammar]'") from None
        kind, text = next(iter(source.items()))
        matcher = llguidance.LLMatcher
        try:
            compiled = getattr(matcher, f"grammar_from_{kind}")(text)  # kinds: config.GRAMMARS
            words = llguidance.hf.from_tokenizer(tokenizer.hf, n_vocab=vocab_size, eos_token=sorted(stop_ids) or None)
            start = matcher(words, compiled, log_level=0)
            problem = start.get_error() if start.is_error() else ""
        except (ValueError, TypeError, RuntimeError) as error:
            problem = str(error)
        if problem:
            raise InputError(f"grammar is no valid {kind}: {' '.join(problem.split())[:200]}")
        self._prompt_length = prompt_length
        self._states: dict[tuple[int, ...], Any] = {(): start}

    def __call__(self, input_ids_BL: Tensor, scores_BV: Tensor) -> Tensor:
        """Scores with -inf for every token that the grammar does not allow behind its history."""
        allowed_BV = torch.stack([self._allowed(history, scores_BV.shape[-1]) for history in input_ids_BL.tolist()])
        return scores_BV.masked_fill(~allowed_BV.to(scores_BV.device), -torch.inf)

    def forced(self, history: Sequence[int]) -> list[int]:
        """The only text that may follow, as the tokenizer spells it (the model may split the same text otherwise)."""
        state = self._state(tuple(history[self._prompt_length :]))
        return [] if state is None else [int(token) for token in state.compute_ff_tokens()]

    def _allowed(self, history: Sequence[int], size: int) -> Tensor:
        state = self._state(tuple(history[self._prompt_length :]))
        if state is None:  # only drafted text can break the rules, and behind it nothing matters
            return torch.ones(size, dtype=torch.bool)
        bits = np.frombuffer(state.compute_bitmask(), dtype=np.uint8)
        return torch.from_numpy(np.unpackbits(bits, count=size, bitorder="little").astype(np.bool_))

    def _state(self, text: tuple[int, ...]) -> Any:
        """The matcher behind ``text``; None where the text breaks the rules."""
        if text in self._states:
            return self._states[text]
        before = self._state(text[:-1]) if len(text) < 2 or text[:-1] in self._states else self._replay(text[:-1])
        state = None
        if before is not None:
            state = before.deep_copy()
            if state.try_consume_tokens([text[-1]]) != 1:
                state = None
        if len(self._states) >= _STATES:
            self._states = {(): self._states[()]}
        self._states[text] = state
        return state

    def _replay(self, text: tuple[int, ...]) -> Any:
        state = self._states[()].deep_copy()
        return state if state.try_consume_tokens(list(text)) == len(text) else None
