"""``model.generate(**inputs, custom_generate=ouroboros.custom_generate, draft_model=…)``: transformers' own call.

transformers prepares inputs, processors and stopping criteria as always; the tokens come from our decoding loop over
the model as it is loaded, through the adapter, so that nothing is copied. Greedy output is that of transformers' own
search; sampled output follows the same distribution, seeded by torch's generator. Rows of a batch run one after the
other. It knows nothing of any architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from ouroboros.config import MethodOptions, SamplingParams, options_for
from ouroboros.decoder import decode
from ouroboros.drafting.factory import NEEDS_DRAFT, build_drafter
from ouroboros.errors import InputError
from ouroboros.models.base import CausalModel
from ouroboros.models.context import Context
from ouroboros.models.guided import GuidedModel
from ouroboros.models.transformers import wrap_module
from ouroboros.phrases.pool import PhrasePool
from ouroboros.sampling import Sampler
from ouroboros.stats import Stats, StatsRecorder

__all__ = ["REPOSITORY", "CustomGenerate", "OuroborosOutput", "custom_generate"]

REPOSITORY = Path(__file__).parent / "repository"  # works as ``custom_generate=`` by path, with ``streamer=``


@dataclass
class OuroborosOutput(GenerateDecoderOnlyOutput):
    """What ``return_dict_in_generate=True`` returns; ``stats``: one entry a row. Past the end of a row that ended
    before others, its scores and logits are zero."""

    stats: tuple[Stats, ...] | None = None


@dataclass(frozen=True)
class _Row:
    tokens: list[int]
    scores: list[Tensor]
    logits: list[Tensor]
    stats: Stats


class CustomGenerate:
    """The callable. It keeps each model that it has met, with an adapter and a phrase pool, until ``forget``."""

    def __init__(self) -> None:
        self._models: dict[torch.nn.Module, CausalModel] = {}
        self._pools: dict[torch.nn.Module, PhrasePool] = {}

    def forget(self) -> None:
        """Lets go of all models and pools, so that their memory can be freed."""
        self._models.clear()
        self._pools.clear()

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
        _refuse(config, token_streamer, input_ids)
        method = method or ("ouroboros" if draft_model is not None else "lookahead")
        if (draft_model is not None) != (method in NEEDS_DRAFT):
            needs = "needs a draft_model" if method in NEEDS_DRAFT else "uses no draft_model"
            raise InputError(f"method {method!r} {needs}")
        options = options_for(method, method_options)
        mask = model_kwargs.get("attention_mask")
        rows = []
        for number, row in enumerate(input_ids):
            padding = _padding(None if mask is None else mask[number], len(row))
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
        return _output(rows, input_ids, config)

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
    ) -> _Row:
        prompt = row[padding:].tolist()
        if not prompt:
            raise InputError("a row of input_ids holds no token; it must have at least one")
        guidance, processors = _guidance(processors, number, prompt)
        target = Context(_guided(self._adapter(model), prompt, guidance))
        draft = None if draft_model is None else Context(_guided(self._adapter(draft_model), prompt, guidance))
        seed = int(torch.randint(2**62, ())) if config.do_sample else 0
        # transformers has put its warpers among the processors, in its own order: what is left to us is the draw.
        params = SamplingParams(
            max_new_tokens=max(1, int(config.max_length) - len(row)),
            temperature=1.0 if config.do_sample else 0.0,
            processors=tuple(_Padded(processor, row[:padding]) for processor in processors),
        )
        info = target.model.info
        sampler = Sampler(params, seed, info.vocab_size, len(prompt))
        recorder = StatsRecorder(method[0], info.backend, info.dtype, info.device, seed, len(prompt))
        recorder.trees, recorder.draft_trees = info.trees, draft is None or draft.model.info.trees
        eos = config.eos_token_id
        stop_ids = frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])

        def start() -> Any:
            return build_drafter(method[1], draft, sampler, pool, prompt, stop_ids, info.max_positions, info.trees)

        wants_scores = config.return_dict_in_generate and config.output_scores
        wants_logits = config.return_dict_in_generate and config.output_logits
        keep = bool(wants_scores or wants_logits)
        tokens: list[int] = []
        scores: list[Tensor] = []
        logits: list[Tensor] = []
        ids, stopped = row, False
        steps = decode(target, start, sampler, prompt, params.max_new_tokens, stop_ids, recorder, keep)
        for step in steps:
            for depth, (token, origin) in enumerate(zip(step.tokens, step.origins, strict=True)):
                recorder.emit(origin.label, origin.value, depth + 1)
                if step.logits_TV is not None:
                    raw_1V = step.logits_TV[depth : depth + 1].float()
                    if wants_scores:
                        scores.append(sampler.warp(raw_1V, [[*prompt, *tokens]]))
                    if wants_logits:
                        logits.append(raw_1V)
                tokens.append(token)
                ids = torch.cat((ids, ids.new_tensor([token])))
                if streamer is not None:
                    streamer.put(ids[-1:].cpu())
                stopped = bool(criteria(ids[None], tuple(scores) or None)[0])
                if stopped:
                    break
            if stopped:
                break
        steps.close()
        return _Row(tokens, scores, logits, recorder.freeze())

    def _adapter(self, module: transformers.PreTrainedModel) -> CausalModel:
        if module not in self._models:
            self._models[module] = wrap_module(module, "auto", "auto")
        return self._models[module]

    def _pool(self, model: transformers.PreTrainedModel, pool: PhrasePool | bool | None) -> PhrasePool:
        if isinstance(pool, PhrasePool):
            return pool
        if pool is False:
            return PhrasePool()
        if pool is not None:
            raise InputError(f"phrase_pool must be None, False or a PhrasePool, not {pool!r}")
        return self._pools.setdefault(model, PhrasePool())


custom_generate = CustomGenerate()


@dataclass(frozen=True, slots=True)
class _Guidance:
    scale: float
    negative: list[int]


def _guidance(
    processors: LogitsProcessorList, number: int, prompt: Sequence[int]
) -> tuple[_Guidance | None, LogitsProcessorList]:
    """transformers' guidance is a processor that runs the model and remembers its calls: we decode its two contexts."""
    places = [i for i, p in enumerate(processors) if isinstance(p, UnbatchedClassifierFreeGuidanceLogitsProcessor)]
    if not places:
        return None, processors
    if places != [0]:
        raise InputError("guidance_scale must come before all other processors, as transformers puts it")
    found = processors[0]
    ids, mask = found.unconditional_context["input_ids"], found.unconditional_context["attention_mask"]
    negative = list(prompt[-1:])
    if ids is not None:
        row = ids[number if len(ids) > 1 else 0]
        kept = row if mask is None else row[mask[number if len(mask) > 1 else 0].bool()]
        negative = kept.tolist() or negative
    return _Guidance(float(found.guidance_scale), negative), LogitsProcessorList(processors[1:])


def _guided(model: CausalModel, prompt: Sequence[int], guidance: _Guidance | None) -> CausalModel:
    return model if guidance is None else GuidedModel(model, guidance.scale, prompt, guidance.negative)


class _Padded:
    """A processor that sees the row as transformers shows it, padding included."""

    def __init__(self, processor: Any, padding: Tensor) -> None:
        self._processor = processor
        self._padding = padding

    def __call__(self, input_ids_BL: Tensor, scores_BV: Tensor) -> Any:
        padding = self._padding.expand(len(input_ids_BL), -1)
        return self._processor(torch.cat((padding, input_ids_BL), dim=-1), scores_BV)


def _refuse(config: GenerationConfig, streamer: Any, input_ids: Tensor) -> None:
    if (config.num_beams or 1) > 1:
        raise InputError(f"num_beams must be 1, not {config.num_beams}: beams are not decoded speculatively")
    for name in ("output_attentions", "output_hidden_states"):
        if config.return_dict_in_generate and getattr(config, name, None):
            raise InputError(f"{name} must be False: rejected rows make it meaningless")
    if streamer is not None and len(input_ids) > 1:
        raise InputError(f"a streamer takes one row, not {len(input_ids)}")


def _padding(mask: Tensor | None, length: int) -> int:
    if mask is None:
        return 0
    kept = int(mask.sum())
    if not bool(mask[length - kept :].all()):
        raise InputError("attention_mask must be 0 on the left alone (padding_side='left')")
    return length - kept


def _output(rows: Sequence[_Row], input_ids: Tensor, config: GenerationConfig) -> Tensor | OuroborosOutput:
    longest = max(len(row.tokens) for row in rows)
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    new = torch.full((len(rows), longest), int(pad), dtype=input_ids.dtype, device=input_ids.device)
    for number, row in enumerate(rows):
        new[number, : len(row.tokens)] = torch.tensor(row.tokens, device=input_ids.device)
    sequences = torch.cat((input_ids, new), dim=-1)
    if not config.return_dict_in_generate:
        return sequences

    def stacked(parts: Sequence[list[Tensor]]) -> Any:
        if not parts[0]:
            return None
        empty = torch.zeros_like(parts[0][0])
        return tuple(torch.cat([part[i] if i < len(part) else empty for part in parts]) for i in range(longest))

    return OuroborosOutput(
        sequences=sequences,  # type: ignore[arg-type]  # a LongTensor by its dtype
        scores=stacked([row.scores for row in rows]),
        logits=stacked([row.logits for row in rows]),
        stats=tuple(row.stats for row in rows),
    )
