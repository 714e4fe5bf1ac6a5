"""Each baseline at its own best setting: every setting of a stated grid, replayed on prompts that are not measured.

A setting's steps are those of a real run (models/recorded.py); its time is the sum of T(n) over all forwards of target
and draft model (bench/timed.py), so that nothing else on the machine decides. The setting with the highest geometric
mean of tokens per second over the prompts is taken, as the report means speed-ups over tasks: by summed seconds the
slowest prompt would choose for all. Greedy and sampled decoding are searched apart; settings that fall far behind the
best are dropped on the way. Methods that learn from rejected rows ask the target for those; the others need it no more.
The search is kept in a file, for the same models, machine, prompts and grids.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ouroboros.bench.cases import Plan
from ouroboros.bench.measuring import decoder_for, params_for, prompt_of
from ouroboros.bench.pair import BenchPair
from ouroboros.bench.runner import Options, Tell
from ouroboros.bench.settings import PLAIN, BenchSettings
from ouroboros.bench.tasks import Item
from ouroboros.bench.timed import TimedModel, VirtualClock
from ouroboros.config import METHODS, MethodOptions, SamplingParams
from ouroboros.control.machine import machine
from ouroboros.control.profile import CostProfile, describe
from ouroboros.directories import cache_directory
from ouroboros.files import parse_json
from ouroboros.models.base import CausalModel, ScoreRequest
from ouroboros.models.context import Context
from ouroboros.models.recorded import RecordedModel, Recording
from ouroboros.stream import GenerationResult
from ouroboros.tree import TokenTree

__all__ = ["GRIDS", "options_from_tuning", "replay", "settings_of", "tune"]

Trial = tuple[str, float, str]  # method, temperature, options as JSON
GRIDS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "speculative": {"draft_tokens": (1, 2, 3, 4, 5, 6, 8, 10)},
    "prompt_lookup": {"draft_tokens": (1, 2, 3, 5, 7, 10, 15), "max_ngram": (2, 3, 4), "min_ngram": (1, 2)},
    "suffix_decoding": {"draft_tokens": (2, 4, 7, 12, 32), "factor": (1, 2), "min_chance": (0.1, 0.3, 0.5)},
    "lookahead": {"window": (1, 3, 10), "ngram": (3, 5), "branches": (1, 4)},
    "token_recycling": {"tree_tokens": (2, 4, 7, 15, 80), "successors": (8,)},
}
TOKENS = 64  # new tokens of a prompt, at most
BEHIND = 1.25  # times the best setting's time, in the geometric mean of at least PATIENCE prompts: it is dropped
PATIENCE = 3
READS_REJECTED = ("lookahead", "token_recycling")


def settings_of(method: str) -> Iterator[dict[str, Any]]:
    """All settings of the method's grid."""
    grid = GRIDS[method]
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def replay(
    pair: BenchPair,
    recording: Recording,
    method: str,
    options: MethodOptions,
    recorded: GenerationResult,
    params: SamplingParams,
    profiles: Mapping[str, CostProfile],
    limit: float = math.inf,
) -> float:
    """Seconds of decoding that a method takes for a recorded output of plain decoding, by the models' measured T(n).

    ``limit``: infinity is returned as soon as it takes more seconds than this.
    """
    clock = VirtualClock()
    known = RecordedModel(pair.target, recording, ask=method in READS_REJECTED)
    draft = None if pair.draft is None else TimedModel(pair.draft, profiles["draft"], clock)
    timed = replace(pair, target=TimedModel(known, profiles["target"], clock), draft=draft)
    with decoder_for(timed, method, options, clock=clock).stream(list(recorded.prompt_token_ids), params) as stream:
        for _ in stream:
            if clock.seconds > limit:
                return math.inf
    assert stream.result.token_ids == recorded.token_ids, "a replay must write what was recorded"
    return clock.seconds


def tune(
    settings: BenchSettings,
    pair: BenchPair,
    plan: Plan,
    profiles: Mapping[str, CostProfile],
    tell: Tell,
    directory: Path | None = None,
) -> dict[str, Any]:
    """The search, as plain JSON values: ``trials`` and ``best``, a list of method, temperature and options each;
    ``tokens_per_second`` of a trial, the geometric mean over prompts, is None where it was dropped.

    Args:
        profiles: T(n) of both models. directory: of the kept searches; the user's cache by default.
    """
    methods = [method for method in METHODS if method in GRIDS and method in settings.methods]
    path = (directory or cache_directory() / "bench") / f"tuned-{_key(settings, pair, plan, methods)}.json"
    kept = _read(path)
    if kept is not None:
        return {**kept, "kept": True}
    began = time.perf_counter()
    logs: dict[Trial, float] = {}  # sums over prompts of log(seconds per token)
    left = {(m, t): [json.dumps(v) for v in settings_of(m)] for m in methods for t in settings.temperatures}
    jobs = [(n, item, t) for n, item in enumerate(plan.tuning, 1) for t in settings.temperatures]
    for done, (number, item, temperature) in enumerate(jobs):
        prompt, params = prompt_of(item, settings, pair)[0], _params(item, settings, temperature)
        recording = Recording()
        plain = decoder_for(pair, PLAIN, {}, RecordedModel(pair.target, recording)).generate(prompt, params)
        tokens = len(plain.token_ids)
        slack = max(number, PATIENCE) * math.log(BEHIND)
        for method in methods:
            tell("tuning", done, len(jobs), f"{method} on {item.task} {item.id}")
            best = math.inf
            for values in left[method, temperature]:
                key = method, temperature, values
                before, options = logs.get(key, 0.0), METHODS[method](**parse_json(values))
                limit = tokens * math.exp(best + slack - before)
                seconds = replay(pair, recording, method, options, plain, params, profiles, limit)
                logs[key] = before + math.log(seconds / tokens)
                best = min(best, logs[key])
            near = [v for v in left[method, temperature] if logs[method, temperature, v] <= best + slack]
            left[method, temperature] = near
        tell("tuning", done + 1, len(jobs), "")
    ends = {(m, t, v): logs[m, t, v] for (m, t), values in left.items() for v in values}
    speeds = {key: round(math.exp(-log / len(plan.tuning)), 3) for key, log in ends.items()}
    trials = [_named(key) | {"tokens_per_second": speeds.get(key)} for key in logs]
    found = {
        "trials": trials,
        "best": [_named(_best(ends, method, t)) for method in methods for t in settings.temperatures],
        "prompts": [f"{item.task} {item.id}" for item in plan.tuning],
        "new_tokens": min(TOKENS, settings.new_tokens),
        "by": "the geometric mean of tokens per second",
        "seconds": round(time.perf_counter() - began, 1),
    }
    _write(path, found)
    return {**found, "kept": False}


def _params(item: Item, settings: BenchSettings, temperature: float) -> SamplingParams:
    params = params_for(item, settings, temperature)
    return replace(params, max_new_tokens=min(TOKENS, params.max_new_tokens))


def _named(trial: Trial) -> dict[str, Any]:
    method, temperature, values = trial
    return {"method": method, "temperature": temperature, "options": parse_json(values)}


def _best(ends: Mapping[Trial, float], method: str, temperature: float) -> Trial:
    return min((key for key in ends if key[:2] == (method, temperature)), key=ends.__getitem__)


def options_from_tuning(tuning: Mapping[str, Any] | None) -> Options:
    """Options of each method and temperature from what ``tune`` found."""
    best: Sequence[Mapping[str, Any]] = [] if tuning is None else tuning["best"]
    return {(one["method"], one["temperature"]): METHODS[one["method"]](**one["options"]) for one in best}


def _key(settings: BenchSettings, pair: BenchPair, plan: Plan, methods: Sequence[str]) -> str:
    models = [model for model in (pair.target, pair.draft) if model is not None]
    named = [(describe(model.info), model.info.grown, _print(model, settings, pair, plan)) for model in models]
    grids = {method: {name: list(values) for name, values in GRIDS[method].items()} for method in methods}
    prompts = [prompt_of(item, settings, pair)[0] for item in plan.tuning]
    sampling = min(TOKENS, settings.new_tokens), settings.temperatures, settings.ignore_eos, settings.seed
    parts = ["geometric mean", named, machine(pair.target.info.device), grids, prompts, sampling]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _print(model: CausalModel, settings: BenchSettings, pair: BenchPair, plan: Plan) -> str:
    """Of its weights: what it answers to the first prompt."""
    ids = prompt_of(plan.tuning[0], settings, pair)[0]
    context = Context(model)
    context.prefill(ids)
    row_V = model.score([ScoreRequest(context.slot, TokenTree(ids[-1]))])[0][0]
    return hashlib.sha256(repr([round(value, 2) for value in row_V.tolist()]).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        options_from_tuning(found)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def _write(path: Path, values: Mapping[str, Any]) -> None:
    """A search that cannot be kept is made again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    except OSError:
        return
