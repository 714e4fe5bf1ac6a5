"""One run of a benchmark: a method or a peer on one prompt, timed. It decides nothing and keeps nothing.

Text is no part of what is measured: prompts and outputs are token ids.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence

import torch

from ouroboros.bench.cases import cut, token_ids
from ouroboros.bench.pair import BenchPair
from ouroboros.bench.peers import Peer
from ouroboros.bench.records import Run
from ouroboros.bench.settings import BenchSettings
from ouroboros.bench.tasks import Item
from ouroboros.config import MethodOptions, SamplingParams, options_from_strings
from ouroboros.control.experience import Control
from ouroboros.control.profile import PairProfile
from ouroboros.drafting.factory import NEEDS_DRAFT
from ouroboros.generate import Decoder, Session
from ouroboros.models.base import CausalModel, ScoreRequest
from ouroboros.models.context import Context
from ouroboros.sampling import Sampler
from ouroboros.tree import Origin, TokenTree

__all__ = ["agreement", "decoder_for", "measure", "measure_peer", "params_for", "prefill", "prompt_of"]

Output = tuple[int, ...]


def decoder_for(
    pair: BenchPair,
    method: str,
    options: MethodOptions | Mapping[str, str],
    target: CausalModel | None = None,
    costs: PairProfile | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Decoder:
    """A decoder of the pair's models, without a tokenizer.

    Args:
        target: in place of the pair's. costs: T(n) that decoding begins with.
        clock: of which costs are learned.
    """
    draft = pair.draft if method in NEEDS_DRAFT else None
    chosen = options if isinstance(options, MethodOptions) else options_from_strings(method, options)
    model = pair.target if target is None else target
    return Decoder(model, draft, None, method, chosen, control=Control(costs), clock=clock)


def params_for(item: Item, settings: BenchSettings, temperature: float) -> SamplingParams:
    """With a seed of the item's own."""
    seed = zlib.crc32(f"{settings.seed} {item.task} {item.id}".encode())
    return SamplingParams(settings.new_tokens, temperature, seed=seed, ignore_eos=settings.ignore_eos)


def prompt_of(
    item: Item, settings: BenchSettings, pair: BenchPair, answers: Sequence[Sequence[int]] = ()
) -> tuple[list[int], int]:
    """The prompt's token ids as the target model takes them, and how many were cut off."""
    return cut(token_ids(item, pair.tokenizer, answers), settings, pair.target.info.max_positions)


def prefill(context: Context, ids: Sequence[int]) -> float:
    """Brings the context to the prompt. Returns the seconds."""
    began = time.perf_counter()
    context.prefill(ids)
    device = context.model.info.device
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def measure(
    label: str, session: Session, ids: Sequence[int], params: SamplingParams, prefill_seconds: float
) -> tuple[Run, Output]:
    """Runs a request in a session whose target has read the prompt, in ``prefill_seconds``."""
    steps: list[tuple[int, float]] = []
    stream = session.stream(list(ids), params)
    began = time.perf_counter()
    for chunk in stream:
        now = time.perf_counter()
        steps.append((len(chunk.token_ids), now - began))
        began = now
    stats = stream.result.stats
    tokens, first = steps[0]
    steps[0] = tokens, max(0.0, first - stats.prefill_seconds - stats.draft_prefill_seconds)
    run = Run(
        label=label,
        method=stats.method,
        prefill_seconds=prefill_seconds,
        draft_prefill_seconds=stats.draft_prefill_seconds,
        decode_seconds=stats.decode_seconds,
        decoded_tokens=stats.new_tokens,
        new_tokens=stats.new_tokens,
        draft_seconds=stats.draft_seconds,
        target_forwards=stats.target_forwards,
        draft_forwards=stats.draft_forwards,
        draft_tokens=stats.draft_tokens,
        accepted_tokens=stats.accepted_tokens,
        accepted_by_origin=stats.accepted_by_origin,
        steps=tuple(steps),
    )
    return run, tuple(stream.result.token_ids)


def measure_peer(peer: Peer, ids: Sequence[int], params: SamplingParams) -> tuple[Run, Output]:
    assert params.seed is not None
    found = peer.generate(
        ids,
        params.max_new_tokens,
        temperature=params.temperature,
        seed=params.seed,
        ignore_eos=params.ignore_eos,
    )
    run = Run(
        label=peer.name,
        method=peer.name,
        prefill_seconds=found.prefill_seconds,
        draft_prefill_seconds=0.0,
        decode_seconds=found.decode_seconds,
        decoded_tokens=found.decoded_tokens,
        new_tokens=len(found.token_ids),
    )
    return run, tuple(found.token_ids)


def agreement(
    target: CausalModel, draft: CausalModel | None, ids: Sequence[int], tokens: Sequence[int], params: SamplingParams
) -> int | None:
    """At how many positions the draft model draws the target's token, given all tokens before it, with the same noise.

    None without a draft model, or where its context is too short. One forward over the target's text, behind as much of
    the prompt's end as the draft model's context holds.
    """
    room = 0 if draft is None else draft.info.max_positions - len(tokens)
    if draft is None or room < 1:
        return None
    context = Context(draft)
    context.prefill(ids[-room:])
    tree = TokenTree(ids[-1])
    tree.extend(0, tokens[:-1], Origin.DRAFT)
    logits_TV = draft.score([ScoreRequest(context.slot, tree)])[0]
    assert params.seed is not None
    sampler = Sampler(params, params.seed, target.info.vocab_size, len(ids))
    drawn = sampler.draw(logits_TV, range(len(ids), len(ids) + len(tokens)), [()] * len(tokens))
    return sum(one == other for one, other in zip(drawn, tokens, strict=True))
