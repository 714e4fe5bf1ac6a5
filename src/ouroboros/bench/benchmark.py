"""A benchmark from settings to results: models, prompts, T(n), the baselines' options, peers, then the runs.

Prints nothing. Results that are there already are gone on with, if they are of the same settings, code and machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ouroboros.bench.cases import Load, plan
from ouroboros.bench.pair import BenchPair, open_pair
from ouroboros.bench.peers import DTYPES, Absent, Peer, open_peers
from ouroboros.bench.profiling import ROWS, measure
from ouroboros.bench.records import Results, environment, read_results
from ouroboros.bench.runner import Runner, Tell
from ouroboros.bench.settings import BenchSettings
from ouroboros.bench.tasks import load_task
from ouroboros.bench.timed import TimedModel, VirtualClock
from ouroboros.bench.tuning import options_from_tuning, tune
from ouroboros.control.machine import machine
from ouroboros.control.profile import CostProfile, describe
from ouroboros.errors import InputError
from ouroboros.generate import Decoder
from ouroboros.models.base import CausalModel

__all__ = ["benchmark"]

OpenPeers = Callable[..., Sequence[Peer | Absent]]
_REPEATS = 5


def benchmark(
    settings: BenchSettings,
    path: Path,
    load: Callable[[str | None, str | None, str], Decoder],
    tell: Tell,
    progress: Callable[[str], None],
    *,
    load_items: Load = load_task,
    peers_of: OpenPeers = open_peers,
    tuned_directory: Path | None = None,
) -> Results:
    """Runs what the results lack.

    Args:
        path: of the results, JSON lines. load: a decoder from target, draft and method. tell: is told how far it is.
        progress: is told what takes long before that. tuned_directory: of kept searches.

    Raises:
        InputError: the file holds results of something else; or as ``open_pair`` and ``plan``.
    """
    results = read_results(path) if path.exists() and path.stat().st_size else None
    if results is not None and dict(results.settings) != settings.to_dict():
        raise InputError(f"{str(path)!r} holds results of other settings: {_difference(results, settings)}")
    chosen = plan(settings, load_items)
    with contextlib.ExitStack() as stack:
        pair = stack.enter_context(open_pair(settings, load, progress))
        here = environment(machine(pair.target.info.device), _models(pair))
        frozen = None if settings.frozen is None else _same(read_results(Path(settings.frozen)), here)
        if results is None:
            results = Results(path, settings.to_dict(), here)
            results.start()
        elif dict(results.environment) != here:
            changed = next(name for name in here if results.environment.get(name) != here[name])
            told = f"{results.environment.get(changed)!r}, not {here[changed]!r}"
            raise InputError(f"{str(path)!r} holds results of another {changed}: {told}; give another file")
        else:
            results.go_on()
        if frozen is not None:
            _freeze(results, frozen)
        if not results.profiles:
            results.add_profiles(_profiles(pair, settings, progress))
        if results.tuning is None and chosen.tuning:
            results.add_tuning(tune(settings, pair, chosen, results.profiles, tell, tuned_directory))
        peers = _open_peers(settings, pair, results, stack, progress, peers_of)
        tuned = options_from_tuning(results.tuning)
        if frozen is None:
            Runner(settings, pair, chosen, tuned, peers, results, tell).run()
        else:
            clock = VirtualClock()
            Runner(settings, _timed(pair, results, clock), chosen, tuned, peers, results, tell, clock).run()
    return results


def _same(known: Results, here: Mapping[str, Any]) -> Results:
    """
    Raises:
        InputError: they are of other models, or of another machine.
    """
    for name in ("machine", "models"):
        if known.environment[name] != here[name]:
            told = f"{known.environment[name]!r}, not {here[name]!r}"
            raise InputError(f"frozen {str(known.path)!r} holds results with other {name}: {told}")
    return known


def _freeze(results: Results, known: Results) -> None:
    """Takes over what another run measured before its runs."""
    if not results.profiles:
        results.add_profiles(known.profiles)
    if results.tuning is None and known.tuning is not None:
        results.add_tuning(known.tuning)


def _timed(pair: BenchPair, results: Results, clock: VirtualClock) -> BenchPair:
    """The same models, whose forwards also move a clock by what was measured before."""
    profiles = results.profiles
    draft = None if pair.draft is None else TimedModel(pair.draft, profiles["draft"], clock)
    return replace(pair, target=TimedModel(pair.target, profiles["target"], clock), draft=draft)


def _difference(results: Results, settings: BenchSettings) -> str:
    for name, value in settings.to_dict().items():
        if results.settings.get(name) != value:
            return f"{name} {results.settings.get(name)!r}, not {value!r}; give another file"
    return "some are unknown here; give another file"


def _models(pair: BenchPair) -> dict[str, str]:
    models = {"target": pair.target} | ({} if pair.draft is None else {"draft": pair.draft})
    return {name: _describe(model) for name, model in models.items()}


def _describe(model: CausalModel) -> str:
    info = model.info
    return "; ".join(part for part in (describe(info), info.engine, info.grown) if part)


def _profiles(pair: BenchPair, settings: BenchSettings, progress: Callable[[str], None]) -> dict[str, CostProfile]:
    """T(n) behind as much text as the prompts may hold, and behind half of it."""
    found = {}
    for name, model in (("target", pair.target), ("draft", pair.draft)):
        if model is not None:
            progress(f"measuring the {name}'s T(n)")
            longest = min(settings.max_prompt_tokens or 512, model.info.max_positions // 2)
            rows = [n for n in ROWS if n + longest <= model.info.max_positions]
            found[name] = measure(model, rows, (max(1, longest // 2), longest), _REPEATS)
    return found


def _open_peers(
    settings: BenchSettings,
    pair: BenchPair,
    results: Results,
    stack: contextlib.ExitStack,
    progress: Callable[[str], None],
    peers_of: OpenPeers,
) -> list[Peer]:
    if not settings.peers:
        return []
    progress("loading the peers")
    found: list[Peer] = []
    info = pair.target.info
    if info.dtype not in DTYPES:
        for name in settings.peers:
            results.add_absent(name, f"the same weights are wanted, and it has no {info.dtype}")
        return []
    opened = peers_of(
        settings.peers,
        target=pair.target_path,
        draft=pair.draft_path,
        dtype=info.dtype,
        threads=settings.threads,
        device=info.device,
        llama_python=settings.llama_python,
    )
    told: dict[str, Any] = {}
    for peer in opened:
        if isinstance(peer, Absent):
            results.add_absent(peer.name, peer.reason)
        else:
            stack.callback(peer.close)
            told[peer.name] = dict(peer.settings)
            found.append(peer)
    if told and told != results.peers:
        results.add_peers(told)
    return found
