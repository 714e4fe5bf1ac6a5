"""One row of transformers' ``generate``: from its arguments to a request, from events to what it returns."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from ouroboros.config import SamplingParams
from ouroboros.decoding.loop import Begun, Event, Step
from ouroboros.decoding.request import Request
from ouroboros.integrations.arguments import Padded
from ouroboros.integrations.outputs import Row
from ouroboros.models.base import ModelInfo
from ouroboros.phrases.memory import Memory
from ouroboros.sampling import Histories, Sampler
from ouroboros.stats import StatsRecorder

__all__ = ["read_row", "request_of"]


def request_of(
    row: Tensor,
    padding: int,
    processors: LogitsProcessorList,
    config: GenerationConfig,
    info: ModelInfo,
    memory: Memory,
) -> Request:
    """transformers has put its warpers among the processors, in its own order: what is left to us is the draw.

    Args:
        row: int64 [L], of which the first ``padding`` tokens are none. info: of the target.
    """
    prompt = row[padding:].tolist()
    params = SamplingParams(
        max_new_tokens=min(max(1, int(config.max_length) - len(row)), info.max_positions),
        temperature=1.0 if config.do_sample else 0.0,
        processors=tuple(Padded(processor, row[:padding]) for processor in processors),
    )
    seed = int(torch.randint(2**62, ())) if config.do_sample else 0
    eos = config.eos_token_id
    return Request(
        prompt=prompt,
        sampler=Sampler(params, seed, info.vocab_size, len(prompt)),
        stop_ids=frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos]),
        memory=memory,
        keep_logits=bool(config.return_dict_in_generate and (config.output_scores or config.output_logits)),
    )


def read_row(
    request: Request,
    events: Generator[Event],
    row: Tensor,
    criteria: StoppingCriteriaList,
    config: GenerationConfig,
    streamer: Any,
    recorder: StatsRecorder,
) -> Row:
    """Decodes a row until it ends or a criterion says so, token by token.

    ``row``: int64 [L], the prompt with its padding.
    """
    wants_scores = bool(config.return_dict_in_generate and config.output_scores)
    wants_logits = bool(config.return_dict_in_generate and config.output_logits)
    scores: list[Tensor] = []
    logits: list[Tensor] = []
    history = list(request.prompt)
    ids = row.new_empty(len(row) + request.sampler.params.max_new_tokens)  # as transformers shows it: with its padding
    ids[: len(row)] = row
    length = len(row)

    def take(step: Step) -> bool:
        """Whether the row ends within this step."""
        nonlocal length
        kept, stopped = 0, False
        for token in step.tokens:
            kept += 1
            if step.logits_TV is not None:
                raw_1V = step.logits_TV[kept - 1 : kept].float()
                if wants_scores:
                    scores.append(request.sampler.warp(raw_1V, Histories(history, [()])))
                if wants_logits:
                    logits.append(raw_1V)
            history.append(token)
            if streamer is not None:
                streamer.put(torch.tensor([token], dtype=row.dtype))
            ids[length] = token
            length += 1
            stopped = bool(criteria(ids[None, :length], tuple(scores) or None)[0])
            if stopped:
                break
        drafted = step.draft_forwards, step.draft_seconds
        recorder.step(step.tree, step.origins[:kept], step.seconds, *drafted, step.decision)
        return stopped

    for event in events:
        if isinstance(event, Begun):
            recorder.begin(event.cached_tokens, event.seconds, event.draft_seconds)
        elif take(event):
            break
    events.close()
    return Row(history[len(request.prompt) :], scores, logits, recorder.freeze())
