"""The options that suit a pair, a machine and a kind of text: searched by replay, confirmed by real runs.

Each setting is replayed on every prompt: the target's rows come from a recording (models/recorded.py), and forwards
take their measured T(n) by a clock of their own (bench/timed.py), so that neither other programs nor the order of the
settings matter. The best ones, the defaults and plain decoding then run in turns, and the clock on the wall decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ouroboros.bench.timed import TimedModel, VirtualClock
from ouroboros.config import SamplingParams, options_for
from ouroboros.control.experience import Control
from ouroboros.control.machine import machine
from ouroboros.control.profile import PairProfile, describe
from ouroboros.control.tuned import Tuned
from ouroboros.generate import Decoder
from ouroboros.models.base import CausalModel
from ouroboros.models.recorded import RecordedModel, Recording

__all__ = ["SETTINGS", "Setting", "search"]

Tell = Callable[[str, int, int, str], None]
_VARIED: Mapping[str, Sequence[Any]] = {
    "siblings": (1, 4),
    "branches": (1, 6),
    "branch_tokens": (4, 10),
    "window": (0, 15),
    "draft_tokens": (4, 8),
    "harvest": (False,),
    "phrase_drafting": (False,),
}
_FIXED = [(2, 6), (3, 8), (5, 12), (5, 32), (8, 48)]  # γ and tokens of the tree, without the controller
SETTINGS: tuple[Mapping[str, Any], ...] = (
    {},
    *({name: value} for name, values in _VARIED.items() for value in values),
    *({"control": False, "draft_tokens": gamma, "tree_tokens": tree, "window": 0} for gamma, tree in _FIXED),
)
CONFIRMED = 3  # settings that are run beside the defaults
BETTER = 1.02  # times the defaults' speed: below this they stay


@dataclass(frozen=True, slots=True)
class Setting:
    """``options``: what differs from the defaults; None for plain decoding. ``replayed``, ``measured``: tokens per
    second; None where it was not run."""

    options: Mapping[str, Any] | None
    replayed: float | None
    measured: float | None


def search(
    target: CausalModel,
    draft: CausalModel,
    costs: PairProfile,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    temperatures: Sequence[float],
    tell: Tell,
    settings: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[Tuned, list[Setting]]:
    """The best options for these prompts (token ids), and all that was tried, best first. The pool is cold.

    Args:
        costs: T(n) of both models. tell: gets stage, done, total and a note.
        settings: ``SETTINGS`` by default; ``{}`` must be among them.
    """
    settings = SETTINGS if settings is None else settings
    requests = [
        (list(prompt), SamplingParams(new_tokens, temperature, seed=number, ignore_eos=True))
        for number, prompt in enumerate(prompts)
        for temperature in temperatures
    ]
    replayed = _replay(target, draft, costs, requests, tell, settings)
    order = sorted(range(len(settings)), key=lambda i: -replayed[i])
    default = next(i for i, options in enumerate(settings) if not options)
    finalists = _different([i for i in order if i != default], replayed)[:CONFIRMED]
    plain, *measured = _run(
        target, draft, costs, requests, [None, settings[default], *(settings[i] for i in finalists)], tell
    )
    found = dict(zip([default, *finalists], measured, strict=True))
    best = max(found, key=lambda i: found[i])
    if found[best] < BETTER * found[default]:
        best = default
    tuned = Tuned(
        describe(target.info),
        describe(draft.info),
        machine(target.info.device),
        settings[best],
        found[best] / plain,
        len(prompts),
        new_tokens,
        tuple(temperatures),
    )
    tried = [Setting(settings[i], replayed[i], found.get(i)) for i in order]
    return tuned, [*tried, Setting(None, None, plain)]


def _different(order: Sequence[int], speeds: Sequence[float]) -> list[int]:
    """Of settings with the same speed, which decided the same, the first."""
    first = {speeds[i]: i for i in reversed(order)}
    return [i for i in order if first[speeds[i]] == i]


_Request = tuple[list[int], SamplingParams]


def _decoder(
    target: CausalModel,
    draft: CausalModel,
    costs: PairProfile,
    options: Mapping[str, Any] | None,
    clock: Callable[[], float] = time.perf_counter,
) -> Decoder:
    if options is None:
        return Decoder(target, None, None, "autoregressive", clock=clock)
    return Decoder(target, draft, options=options_for("ouroboros", options), control=Control(costs), clock=clock)


def _replay(
    target: CausalModel,
    draft: CausalModel,
    costs: PairProfile,
    requests: Sequence[_Request],
    tell: Tell,
    settings: Sequence[Mapping[str, Any]],
) -> list[float]:
    """Tokens per second of each setting, by the clock of measured forwards."""
    clocks = [VirtualClock() for _ in settings]
    decoders = []
    recorded = RecordedModel(target)
    for options, clock in zip(settings, clocks, strict=True):
        pair = TimedModel(recorded, costs.target, clock), TimedModel(draft, costs.draft, clock)
        decoder = _decoder(*pair, costs, options, clock)
        decoders.append(decoder)
    tokens = 0
    for done, (prompt, params) in enumerate(requests):
        recorded.recording = Recording()  # of this prompt alone: it holds a row of the vocabulary for each token
        for number, decoder in enumerate(decoders):
            tell("replay", done, len(requests), f"setting {number + 1} of {len(decoders)}")
            result = decoder.generate(prompt, params)
        tokens += len(result.token_ids)
    tell("replay", len(requests), len(requests), "")
    return [tokens / clock.seconds for clock in clocks]


def _run(
    target: CausalModel,
    draft: CausalModel,
    costs: PairProfile,
    requests: Sequence[_Request],
    settings: Sequence[Mapping[str, Any] | None],
    tell: Tell,
) -> list[float]:
    """Tokens per second of each setting on this machine, in turns."""
    decoders = [_decoder(target, draft, costs, options) for options in settings]
    seconds = [0.0] * len(settings)
    tokens = 0
    for done, (prompt, params) in enumerate(requests):
        tell("real runs", done, len(requests), "")
        first = done % len(settings)
        for i in [*range(first, len(settings)), *range(first)]:
            result = decoders[i].generate(prompt, params)
            seconds[i] += result.stats.decode_seconds
        tokens += len(result.token_ids)
    tell("real runs", len(requests), len(requests), "")
    return [tokens / taken for taken in seconds]
