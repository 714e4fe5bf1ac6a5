"""``model.generate(**inputs, custom_generate=ouroboros.custom_generate, draft_model=…)``: transformers' own call.

transformers prepares inputs, processors and stopping criteria as always, and its own code reads the prompt; the tokens
come from our decoding loop over the model as it is loaded, through the adapter, so that nothing is copied. Greedy
output is that of transformers' own search; sampled output follows the same distribution, seeded by torch's generator.
Rows of a batch run one after the other. It knows nothing of any architecture.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
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
from ouroboros.integrations.arguments import count_padding, refuse
from ouroboros.integrations.outputs import OuroborosOutput, join_rows
from ouroboros.integrations.processors import Guidance, of_row, split_guidance
from ouroboros.integrations.reading import read_prompts, write_back
from ouroboros.integrations.rows import Prompt, read_row, request_of
from ouroboros.models.base import CausalModel
from ouroboros.models.context import Context
from ouroboros.models.guided import GuidedModel
from ouroboros.models.prompted import PromptedModel, ShiftedModel
from ouroboros.models.ranks import is_spread
from ouroboros.models.transformers import wrap_module
from ouroboros.models.transformers_model import TransformersModel, evaluating
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.pool import PhrasePool
from ouroboros.stats import StatsRecorder

__all__ = ["REPOSITORY", "CustomGenerate", "OuroborosOutput", "custom_generate"]

REPOSITORY = Path(__file__).parent / "repository"  # works as ``custom_generate=`` by path, with ``streamer=``


@dataclass
class _Kept:
    """What is kept of a model that was met."""

    adapter: TransformersModel
    memory: Memory = field(default_factory=Memory)


class CustomGenerate:
    """The callable. It keeps each model that it has met, with an adapter and a phrase pool, until ``forget``."""

    def __init__(self) -> None:
        self._kept: dict[torch.nn.Module, _Kept] = {}
        self._control = Control()

    def forget(self) -> None:
        """Lets go of all models and pools, so that their memory can be freed."""
        self._kept.clear()
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

            All inputs of the model are read by its own preparation, as in ``generate``: position ids, embeddings in
            place of tokens, images, token types, virtual tokens (peft), and a DynamicCache of one's own, which gets
            the new rows. ``use_cache`` and ``logits_to_keep`` have no meaning here, ``assistant_model``,
            ``synced_gpus`` and ``tokenizer`` do not reach a callable.

        Both models are in evaluation mode meanwhile (no dropout), and afterwards as they were. A model that has changed
        since the last call (vocabulary, device, type, …) is looked at anew.

        Raises:
            InputError: what cannot be decoded speculatively, by its name (see arguments.py and reading.py); a streamer
                with several rows; padding that is not on the left; a prompt past the model's positions; a bad method or
                option. LoadError: a model that cannot be rolled back.

        Warns:
            UserWarning: a row ended where the model's positions end.
        """
        config = generation_config or model.generation_config
        processors = logits_processor or LogitsProcessorList()
        cache = model_kwargs.get("past_key_values")
        refuse(config, processors, token_streamer, input_ids, cache)
        method = method or ("ouroboros" if draft_model is not None else "lookahead")
        if (draft_model is not None) != (method in NEEDS_DRAFT):
            needs = "needs a draft_model" if method in NEEDS_DRAFT else "uses no draft_model"
            raise InputError(f"method {method!r} {needs}")
        options = options_for(method, method_options)
        rows = []
        with ExitStack() as modes:
            for module in (model, draft_model):
                if module is not None:
                    modes.enter_context(evaluating(module))
            prompts = _prompts(input_ids, config, model_kwargs)
            adapter = self._adapter(model)
            began = time.perf_counter()
            readings = read_prompts(model, adapter, input_ids, config, model_kwargs)
            seconds = (time.perf_counter() - began) / len(readings)
            for number, (prompt, reading) in enumerate(zip(prompts, readings, strict=True)):
                guidance, others = split_guidance(processors, number, prompt.ids)
                prompted = PromptedModel(adapter, reading, len(prompt.ids))
                target = Context(_guided(prompted, prompt.ids, guidance, _second(adapter, guidance)))
                # The last token needs no position of its own.
                room = target.model.info.max_positions + 1 - len(prompt.ids)
                if room <= 0:
                    end = f"{type(model).__name__} has {adapter.info.max_positions} in all"
                    raise InputError(
                        f"the prompt and negative_prompt_ids take {reading.position} positions or more; {end}"
                    )
                draft = None
                if draft_model is not None:
                    draft = Context(_guided(self._adapter(draft_model), prompt.ids, guidance))
                own, info = [of_row(one, number) for one in others], target.model.info
                memory = self._memory(model, phrase_pool)
                request = request_of(prompt, own, config, room, info.vocab_size, memory)
                recorder = StatsRecorder(
                    method, info.backend, info.dtype, info.device, request.sampler.seed, len(prompt.ids), info.trees,
                    draft is None or draft.model.info.trees,
                )  # fmt: skip
                events = run(start(request, options, target, draft, self._control), observe=self._control.observe)
                criteria = stopping_criteria or StoppingCriteriaList()
                row = read_row(request, events, prompt.row, criteria, config, token_streamer, recorder, seconds)
                rows.append(row)
                if not row.ended and len(row.tokens) < int(config.max_length or 0) - len(prompt.row):
                    end = f"after {len(row.tokens)} new tokens, where the {adapter.info.max_positions} positions"
                    warnings.warn(f"a row ends {end} of {type(model).__name__} end", stacklevel=3)
        if token_streamer is not None:
            token_streamer.end()
        shown = cache is not None and len(rows) == 1 and config.return_dict_in_generate
        if cache is not None and len(rows) == 1 and (shown or getattr(cache, "_is_user_defined", True)):
            write_back(readings[0].slot, readings[0].rows + len(rows[0].tokens) - 1, cache)
        return join_rows(rows, input_ids, config, cache if shown else None)

    def _adapter(self, module: transformers.PreTrainedModel) -> TransformersModel:
        """Made anew where the module is no longer what it was."""
        kept = self._kept.get(module)
        if kept is None and is_spread(module):
            name = type(module).__name__
            raise InputError(f"the weights of {name} lie in several processes: give it to ouroboros.load instead")
        if kept is None:
            kept = self._kept[module] = _Kept(wrap_module(module, "auto", "auto", past_end=True))
        elif kept.adapter.change:
            size = kept.adapter.info.vocab_size
            kept.adapter = wrap_module(module, "auto", "auto", past_end=True)
            if kept.adapter.info.vocab_size < size:
                kept.memory = Memory()
        return kept.adapter

    def _memory(self, model: transformers.PreTrainedModel, pool: PhrasePool | bool | None) -> Memory:
        if isinstance(pool, PhrasePool):
            pool.check(self._kept[model].adapter.info.vocab_size)
            return Memory(pool)
        if pool is False:
            return Memory()
        if pool is not None:
            raise InputError(f"phrase_pool must be None, False or a PhrasePool, not {pool!r}")
        return self._kept[model].memory


custom_generate = CustomGenerate()


def _guided(
    model: CausalModel, prompt: Sequence[int], guidance: Guidance | None, second: CausalModel | None = None
) -> CausalModel:
    return model if guidance is None else GuidedModel(model, guidance.scale, prompt, guidance.negative, second)


def _second(adapter: TransformersModel, guidance: Guidance | None) -> CausalModel:
    """What answers for the negative context: transformers counts its padding among the positions."""
    return ShiftedModel(adapter, guidance.ahead) if guidance is not None and guidance.ahead else adapter


def _prompts(input_ids: Tensor, config: GenerationConfig, inputs: Mapping[str, Any]) -> list[Prompt]:
    """Raises InputError for a row without a token, where no embeddings stand for it."""
    found = []
    start = next((one for one in (config.bos_token_id, config.pad_token_id) if isinstance(one, int)), 0)
    for number, row in enumerate(input_ids):
        prompt = Prompt(row, count_padding(inputs.get("attention_mask"), number, len(row)), start)
        if prompt.hidden and inputs.get("inputs_embeds") is None:
            raise InputError("a row of input_ids holds no token; it must have at least one")
        found.append(prompt)
    return found
