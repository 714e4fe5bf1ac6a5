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

from ouroboros.config import MethodOptions, OuroborosOptions, SamplingParams, options_for
from ouroboros.control.controller import Control
from ouroboros.control.known import known_costs
from ouroboros.decoder import decode
from ouroboros.drafting.factory import NEEDS_DRAFT, build_drafter
from ouroboros.errors import InputError
from ouroboros.integrations.arguments import Guidance, Padded, count_padding, refuse, split_guidance
from ouroboros.integrations.outputs import OuroborosOutput, Row, join_rows
from ouroboros.models.base import CausalModel
from ouroboros.models.context import Context
from ouroboros.models.guided import GuidedModel
from ouroboros.models.transformers import wrap_module
from ouroboros.phrases.pool import PhrasePool
from ouroboros.sampling import Histories, Sampler
from ouroboros.stats import StatsRecorder

__all__ = ["REPOSITORY", "CustomGenerate", "OuroborosOutput", "custom_generate"]

REPOSITORY = Path(__file__).parent / "repository"  # works as ``custom_generate=`` by path, with ``streamer=``


class CustomGenerate:
    """The callable. It keeps each model that it has met, with an adapter and a phrase pool, until ``forget``."""

    def __init__(self) -> None:
        self._models: dict[torch.nn.Module, CausalModel] = {}
        self._pools: dict[torch.nn.Module, PhrasePool] = {}
        self._controls: dict[tuple[torch.nn.Module, torch.nn.Module], Control] = {}

    def forget(self) -> None:
        """Lets go of all models and pools, so that their memory can be freed."""
        self._models.clear()
        self._pools.clear()
        self._controls.clear()

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
            rows.append(
                self._decode(
                    model,
                    draft_model,
                    number,
                    row,
                    padding,
                    logits_processor or LogitsProcessorList(),
                    stopping_criteria or StoppingCriteriaList(),
                    config,
                    (method, options),
                    self._pool(model, phrase_pool),
                    token_streamer,
                )
            )
        if token_streamer is not None:
            token_streamer.end()
        return join_rows(rows, input_ids, config)

    def _decode(
        self,
        model: transformers.PreTrainedModel,
        draft_model: transformers.PreTrainedModel | None,
        number: int,
        row: Tensor,
        padding: int,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        config: GenerationConfig,
        method: tuple[str, MethodOptions],
        pool: PhrasePool,
        streamer: Any,
    ) -> Row:
        prompt = row[padding:].tolist()
        if not prompt:
            raise InputError("a row of input_ids holds no token; it must have at least one")
        guidance, processors = split_guidance(processors, number, prompt)
        target = Context(_guided(self._adapter(model), prompt, guidance))
        draft = None if draft_model is None else Context(_guided(self._adapter(draft_model), prompt, guidance))
        seed = int(torch.randint(2**62, ())) if config.do_sample else 0
        # transformers has put its warpers among the processors, in its own order: what is left to us is the draw.
        params = SamplingParams(
            max_new_tokens=max(1, int(config.max_length) - len(row)),
            temperature=1.0 if config.do_sample else 0.0,
            processors=tuple(Padded(processor, row[:padding]) for processor in processors),
        )
        info = target.model.info
        sampler = Sampler(params, seed, info.vocab_size, len(prompt))
        recorder = StatsRecorder(method[0], info.backend, info.dtype, info.device, seed, len(prompt))
        recorder.trees, recorder.draft_trees = info.trees, draft is None or draft.model.info.trees
        eos = config.eos_token_id
        stop_ids = frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])

        control = self._control(model, draft_model, method[1])

        def start() -> Any:
            limits = info.max_positions, info.trees
            controller = None
            if control is not None:
                room, report = params.max_new_tokens, recorder.decisions.append
                controller = control.controller(float(config.do_sample), len(prompt), room, report)
            return build_drafter(method[1], draft, sampler, pool, prompt, stop_ids, *limits, controller)

        wants_scores = config.return_dict_in_generate and config.output_scores
        wants_logits = config.return_dict_in_generate and config.output_logits
        keep = bool(wants_scores or wants_logits)
        scores: list[Tensor] = []
        logits: list[Tensor] = []
        history, stopped = list(prompt), False
        ids = row.new_empty(len(row) + params.max_new_tokens)  # as transformers shows it: with its padding
        ids[: len(row)] = row
        steps = decode(target, start, sampler, prompt, params.max_new_tokens, stop_ids, recorder, keep)
        for step in steps:
            for depth, (token, origin) in enumerate(zip(step.tokens, step.origins, strict=True)):
                recorder.emit(origin.label, origin.value, depth + 1)
                if step.logits_TV is not None:
                    raw_1V = step.logits_TV[depth : depth + 1].float()
                    if wants_scores:
                        scores.append(sampler.warp(raw_1V, Histories(history, [()])))
                    if wants_logits:
                        logits.append(raw_1V)
                history.append(token)
                if streamer is not None:
                    streamer.put(torch.tensor([token], dtype=row.dtype))
                length = padding + len(history)
                ids[length - 1] = token
                stopped = bool(criteria(ids[None, :length], tuple(scores) or None)[0])
                if stopped:
                    break
            if stopped:
                break
        steps.close()
        return Row(history[len(prompt) :], scores, logits, recorder.freeze())

    def _adapter(self, module: transformers.PreTrainedModel) -> CausalModel:
        if module not in self._models:
            self._models[module] = wrap_module(module, "auto", "auto")
        return self._models[module]

    def _control(
        self,
        model: transformers.PreTrainedModel,
        draft_model: transformers.PreTrainedModel | None,
        options: MethodOptions,
    ) -> Control | None:
        if draft_model is None or not (isinstance(options, OuroborosOptions) and options.control):
            return None
        pair = model, draft_model
        if pair not in self._controls:
            self._controls[pair] = Control(known_costs(self._adapter(model), self._adapter(draft_model)))
        return self._controls[pair]

    def _pool(self, model: transformers.PreTrainedModel, pool: PhrasePool | bool | None) -> PhrasePool:
        if isinstance(pool, PhrasePool):
            return pool
        if pool is False:
            return PhrasePool()
        if pool is not None:
            raise InputError(f"phrase_pool must be None, False or a PhrasePool, not {pool!r}")
        return self._pools.setdefault(model, PhrasePool())


custom_generate = CustomGenerate()


def _guided(model: CausalModel, prompt: Sequence[int], guidance: Guidance | None) -> CausalModel:
    return model if guidance is None else GuidedModel(model, guidance.scale, prompt, guidance.negative)
