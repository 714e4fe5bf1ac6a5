"""One row of transformers' ``generate``: from its arguments to a request, from events to what it returns."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList

from ouroboros.config import SamplingParams
from ouroboros.decoding.loop import Begun, Event, Step
from ouroboros.decoding.request import Request
from ouroboros.integrations.outputs import Row
from ouroboros.integrations.processors import Shown
from ouroboros.phrases.memory import Memory
from ouroboros.sampling import Histories, Sampler
from ouroboros.stats import StatsRecorder

__all__ = ["Prompt", "read_row", "request_of"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row of ``input_ids``, [L], of which the first ``padding`` tokens are none, and the ids that we take it for:
    where it holds none (embeddings alone), a placeholder that nobody is shown."""

    row: Tensor
    padding: int
    placeholder: int

    @property
    def ids(self) -> list[int]:
        return self.row[self.padding :].tolist() or [self.placeholder]

    @property
    def hidden(self) -> int:
        return 0 if len(self.row) > self.padding else 1


def request_of(
    prompt: Prompt,
    processors: Sequence[Any],
    config: GenerationConfig,
    room: int,
    vocab_size: int,
    memory: Memory,
) -> Request:
    """transformers has put its warpers among the processors, in its own order: what is left to us is the draw.

    Args:
        processors: for this row. room: new tokens that the model's positions have room for.
    """
    row = prompt.row
    before = row[: prompt.padding]
    params = SamplingParams(
        max_new_tokens=max(1, int(config.max_length or 0) - len(row)),
        temperature=1.0 if config.do_sample else 0.0,
        processors=tuple(Shown(processor, before, prompt.hidden) for processor in processors),
    )
    seed = int(torch.randint(2**62, ())) if config.do_sample else 0
    eos = config.eos_token_id
    return Request(
        prompt=prompt.ids,
        sampler=Sampler(params, seed, vocab_size, len(prompt.ids)),
        stop_ids=frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos]),
        memory=memory,
        keep_logits=bool(config.return_dict_in_generate and (config.output_scores or config.output_logits)),
        room=room,
    )


def read_row(
    request: Request,
    events: Generator[Event],
    row: Tensor,
    criteria: StoppingCriteriaList,
    config: GenerationConfig,
    streamer: Any,
    recorder: StatsRecorder,
    reading: float,
) -> Row:
    """Decodes a row until it ends or a criterion says so, token by token.

    Args:
        row: int64 [L], the prompt with its padding. reading: seconds that its prompt took.
    """
    wants_scores = bool(config.return_dict_in_generate and config.output_scores)
    wants_logits = bool(config.return_dict_in_generate and config.output_logits)
    scores: list[Tensor] = []
    logits: list[Tensor] = []
    history = list(request.prompt)
    ids, length = row, len(row)  # as transformers shows it: with its padding
    ended = False

    def take(step: Step) -> bool:
        """Whether the row ends within this step."""
        nonlocal ids, length, ended
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
            if length == len(ids) or ids is row:  # what criteria were shown they may keep
                ids = torch.cat((ids, ids.new_empty(max(64, length))))
            ids[length] = token
            length += 1
            stopped = bool(criteria(ids[None, :length], tuple(scores) or None)[0])
            if stopped:
                break
        step.record(recorder, kept)
        ended = stopped or history[-1] in request.stop_ids
        return stopped

    for event in events:
        if isinstance(event, Begun):
            recorder.begin(0, reading + event.seconds, event.draft_seconds)
        elif take(event):
            break
    events.close()
    return Row(history[len(request.prompt) :], scores, logits, recorder.freeze(), ended)
