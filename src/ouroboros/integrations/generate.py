"""``model.generate(**inputs, custom_generate=ouroboros.custom_generate, draft_model=…)``: transformers' own call.

transformers prepares inputs, processors and stopping criteria as always; the tokens come from our decoding loop over
the model as it is loaded, through the adapter, so that nothing is copied. Greedy output is that of transformers' own
search; sampled output follows the same distribution, seeded by torch's generator. Rows of a batch run one after the
other. It knows nothing of any architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from ouroboros.config import MethodOptions, options_for
from ouroboros.control.experience import Control
from ouroboros.decoding.request import start
from ouroboros.decoding.run import run
from ouroboros.drafting.factory import NEEDS_DRAFT
from ouroboros.errors import InputError
from ouroboros.integrations.arguments import Guidance, count_padding, refuse, split_guidance
from ouroboros.integrations.outputs import OuroborosOutput, join_rows
from ouroboros.integrations.rows import read_row, request_of
from ouroboros.models.base import CausalModel
from ouroboros.models.context import Context
from ouroboros.models.guided import GuidedModel
from ouroboros.models.transformers import wrap_module
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.pool import PhrasePool
from ouroboros.stats import StatsRecorder

__all__ = ["REPOSITORY", "CustomGenerate", "OuroborosOutput", "custom_generate"]

REPOSITORY = Path(__file__).parent / "repository"  # works as ``custom_generate=`` by path, with ``streamer=``


class CustomGenerate:
    """The callable. It keeps each model that it has met, with an adapter and a phrase pool, until ``forget``."""

    def __init__(self) -> None:
        self._models: dict[torch.nn.Module, CausalModel] = {}
        self._memories: dict[torch.nn.Module, Memory] = {}
        self._control = Control()

    def forget(self) -> None:
        """Lets go of all models and pools, so that their memory can be freed."""
        self._models.clear()
        self._memories.clear()
        self._control = Control()

    def __call__(
        self,
        model: transformers.PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        generation_config: GenerationConfig | None = None,
        draft_model: transformers.PreTrainedModel | None = None,
        phrase_pool: PhrasePool | bool | None = None,
        method: str | None = None,
        method_options: MethodOptions | dict[str, Any] | None = None,
        token_streamer: Any = None,
        **model_kwargs: Any,
    ) -> Tensor | OuroborosOutput:
        """As transformers calls it; the caller's own arguments:

        Args:
            draft_model: a small model of the same vocabulary. method: by default ``ouroboros`` with a draft model,
                ``lookahead`` without. method_options: its options, a dataclass of config.py or a dict.
            phrase_pool: None: one that is kept for the model; False: an empty one for each row; or a PhrasePool.
            token_streamer: a transformers streamer. (transformers keeps ``streamer=`` from callables and would let it
                wait for ever; the folder ``REPOSITORY`` takes it by that name. Likewise ``stop_strings=`` needs a
                tokenizer that transformers keeps from callables: give ``StopStringCriteria`` instead.)

        Raises:
            InputError: beam search, attentions or hidden states asked for, a streamer with several rows, padding
                that is not on the left, or a bad method or option.
        """
        config = generation_config or model.generation_config
        refuse(config, token_streamer, input_ids)
        method = method or ("ouroboros" if draft_model is not None else "lookahead")
        if (draft_model is not None) != (method in NEEDS_DRAFT):
            needs = "needs a draft_model" if method in NEEDS_DRAFT else "uses no draft_model"
            raise InputError(f"method {method!r} {needs}")
        options = options_for(method, method_options)
        mask = model_kwargs.get("attention_mask")
        rows = []
        for number, row in enumerate(input_ids):
            padding = count_padding(None if mask is None else mask[number], len(row))
            prompt = row[padding:].tolist()
            if not prompt:
                raise InputError("a row of input_ids holds no token; it must have at least one")
            guidance, processors = split_guidance(logits_processor or LogitsProcessorList(), number, prompt)
            target = Context(_guided(self._adapter(model), prompt, guidance))
            draft = None if draft_model is None else Context(_guided(self._adapter(draft_model), prompt, guidance))
            info = target.model.info
            request = request_of(row, padding, processors, config, info, self._memory(model, phrase_pool))
            recorder = StatsRecorder(
                method, info.backend, info.dtype, info.device, request.sampler.seed, len(prompt), info.trees,
                draft is None or draft.model.info.trees,
            )  # fmt: skip
            events = run(start(request, options, target, draft, self._control), observe=self._control.observe)
            criteria = stopping_criteria or StoppingCriteriaList()
            rows.append(read_row(request, events, row, criteria, config, token_streamer, recorder))
        if token_streamer is not None:
            token_streamer.end()
        return join_rows(rows, input_ids, config)

    def _adapter(self, module: transformers.PreTrainedModel) -> CausalModel:
        if module not in self._models:
            self._models[module] = wrap_module(module, "auto", "auto")
        return self._models[module]

    def _memory(self, model: transformers.PreTrainedModel, pool: PhrasePool | bool | None) -> Memory:
        if isinstance(pool, PhrasePool):
            return Memory(pool)
        if pool is False:
            return Memory()
        if pool is not None:
            raise InputError(f"phrase_pool must be None, False or a PhrasePool, not {pool!r}")
        return self._memories.setdefault(model, Memory())


custom_generate = CustomGenerate()


def _guided(model: CausalModel, prompt: Sequence[int], guidance: Guidance | None) -> CausalModel:
    return model if guidance is None else GuidedModel(model, guidance.scale, prompt, guidance.negative)
