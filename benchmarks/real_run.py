"""The process of real_pair.py that measures one scenario: it loads the pair, runs all methods, and writes the raw file.

Its user is real_pair.py, which gives it an empty cache directory. Only what every user has is used: ``load``,
``stream`` and the result's statistics.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import ouroboros
from benchmarks.real_busy import BusyPrograms, cores
from benchmarks.real_figures import decoding
from benchmarks.real_prompts import ChatPrompt, digest, load_prompts
from benchmarks.real_results import PLAIN, SUBJECT, Case, Raw, Run, read_raw, write_raw
from ouroboros.bench.records import environment
from ouroboros.control.machine import machine
from ouroboros.control.profile import describe
from ouroboros.errors import InputError
from ouroboros.prompts import Prompt

__all__ = ["first_difference", "measure", "parse_method"]

WARM_UP = "The sea was calm that morning, and nobody on the pier had yet"  # of plain and speculative decoding
SEED = 1000
BUSY_SECONDS = 5.0
LONGEST_LOAD = 900.0  # seconds that programs beside the load are busy if nobody ends them
HIT = (3, 7)  # places of the prompts at whose first, and last, temperature a busy program comes


def parse_method(label: str) -> tuple[str, dict[str, int] | None]:
    """Method and options of a label: ``speculative-4`` has four draft tokens, ``speculative`` its default."""
    name, _, count = label.partition("-")
    return name, {"draft_tokens": int(count)} if count else None


def measure(settings: dict[str, Any], out: Path) -> None:
    """Measures what the raw file lacks of a scenario.

    Args:
        settings: as real_pair.py makes them; target and draft as ``load`` takes them.

    Raises:
        InputError: the file has other settings, or comes from another machine, version or pair.
    """
    prompts = load_prompts(settings["prompts"], settings["limit"])
    public = {**settings, "target": Path(settings["target"]).name, "draft": Path(settings["draft"]).name}
    public |= {"prompts": Path(settings["prompts"]).stem, "prompts_digest": digest(prompts)}
    earlier = read_raw(out) if out.exists() else None
    if earlier is not None and dict(earlier.settings) != public:
        raise InputError(f"{out.name} was measured with other settings: {json.dumps(earlier.settings)}")
    done = {(case.prompt, case.temperature) for case in earlier.cases} if earlier else set()
    if all((prompt.name, heat) in done for prompt in prompts for heat in settings["temperatures"]):
        return
    decoder, load_seconds = _load(settings)
    models = {"target": describe(decoder.target.info)}
    if decoder.draft is not None:
        models["draft"] = describe(decoder.draft.info)
    found = environment(machine(decoder.target.info.device), models)
    raw = Raw(public, found) if earlier is None else earlier
    if dict(raw.environment) != found:
        raise InputError(f"{out.name} is of another machine, version or pair: {json.dumps(raw.environment)}")
    disturbances: list[tuple[float, float]] = []
    raw.processes.append({"load_seconds": round(load_seconds, 3), "disturbances": disturbances})
    if settings["scenario"] == "busy-load":
        raw.processes[-1]["busy_while_loading"] = len(cores())
    bench = _Bench(settings, decoder, disturbances=disturbances)
    bench.warm_up()
    with _progress() as progress, bench.stack:
        each = len(settings["methods"]) * settings["repeats"]
        total = len(prompts) * len(settings["temperatures"]) * each
        bar = progress.add_task(settings["scenario"], total=total, completed=len(done) * each)
        for place, prompt in enumerate(prompts):
            for turn, heat in enumerate(settings["temperatures"]):
                if (prompt.name, heat) in done:
                    continue
                order = place * len(settings["temperatures"]) + turn
                hit = (place, turn) in _hit(len(prompts), len(settings["temperatures"]))
                hit = hit and settings["scenario"] == "busy-middle"
                name = f"{settings['scenario']}: {prompt.name} at {heat:g}"

                def tell(label: str, name: str = name) -> None:
                    progress.update(bar, advance=1, description=f"{name}, {label}", refresh=True)

                case = bench.case(prompt, heat, SEED + place, order, hit, tell)
                raw.cases.append(replace(case, process=len(raw.processes) - 1))
                write_raw(raw, out)
                progress.console.print(f"{name}: {_summary(case)}", soft_wrap=True)


def _load(settings: Mapping[str, Any]) -> tuple[ouroboros.Decoder, float]:
    """The pair with Ouroboros's defaults, and how long that took; for ``busy-load`` beside busy programs."""
    with ExitStack() as stack:
        if settings["scenario"] == "busy-load":
            stack.enter_context(BusyPrograms(LONGEST_LOAD, list(cores()))).go()
        precision = {name: settings[name] for name in ("dtype", "engine")}
        began = time.perf_counter()
        decoder = ouroboros.load(settings["target"], settings["draft"], method=SUBJECT, pool=False, **precision)
        return decoder, time.perf_counter() - began


def _summary(case: Case) -> str:
    """Milliseconds a token, decoding, of each method's first request."""
    first = (run for run in case.runs if run.repeat == 0 and run.tokens)
    return ", ".join(f"{run.label} {1000 * decoding(run):.1f}" for run in first) + " ms a token"


def _hit(prompts: int, temperatures: int) -> set[tuple[int, int]]:
    """Places of prompt and temperature at which a busy program comes; of few prompts the last one stands in."""
    first, second = (min(place, prompts - 1) for place in HIT)
    return {(first, 0), (second, temperatures - 1)}


def _progress() -> Progress:
    """It draws only when it is told to, between requests, so that it takes no time from them."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), auto_refresh=False)


@dataclass(slots=True)
class _Bench:
    """All methods on one loaded pair. ``stack`` holds the busy programs that came; ``disturbances`` says when."""

    settings: Mapping[str, Any]
    subject: ouroboros.Decoder
    disturbances: list[tuple[float, float]]
    stack: ExitStack = field(default_factory=ExitStack)
    _decoders: dict[str, ouroboros.Decoder] = field(default_factory=dict)
    _zero: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        for label in self.settings["methods"]:
            self._decoders[label] = self.subject if label == SUBJECT else self._decoder(*parse_method(label))

    def _decoder(self, method: str, options: dict[str, int] | None) -> ouroboros.Decoder:
        models = self.subject.target, self.subject.draft if method in ("speculative", SUBJECT) else None
        return ouroboros.load(*models, self.subject.tokenizer, method, pool=False, options=options)

    def warm_up(self) -> None:
        """Both models' first forwards, in decoders of their own: Ouroboros learns nothing from them."""
        for method in (PLAIN, "speculative"):
            self._decoder(method, None).generate(WARM_UP, max_new_tokens=8, ignore_eos=True)

    def case(
        self, prompt: ChatPrompt, temperature: float, seed: int, order: int, hit: bool, tell: Callable[[str], None]
    ) -> Case:
        """All methods by turns on a prompt. With ``hit`` a busy program begins with Ouroboros's first request.
        ``tell`` hears of each method when its request has ended."""
        words = self.subject.tokenizer
        asked = prompt.ask(words is not None and words.has_chat_template)
        load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        programs = self.stack.enter_context(BusyPrograms(BUSY_SECONDS, [None])) if hit else None
        labels = list(self._decoders)
        runs: list[Run] = []
        written: dict[tuple[str, int], tuple[int, ...]] = {}
        prompt_tokens = 0
        for repeat in range(self.settings["repeats"]):
            first = (order + repeat) % len(labels)
            for label in labels[first:] + labels[:first]:
                if programs is not None and repeat == 0 and label == SUBJECT:
                    programs.go()
                    now = time.perf_counter() - self._zero
                    self.disturbances.append((round(now, 3), round(now + BUSY_SECONDS, 3)))
                run, result = self._request(label, repeat, asked, temperature, seed)
                runs.append(run)
                tell(label)
                written[label, repeat] = result.token_ids
                prompt_tokens = len(result.prompt_token_ids)
        plain = written[PLAIN, 0]
        runs = [replace(run, differs_at=first_difference(plain, written[run.label, run.repeat])) for run in runs]
        return Case(prompt.name, temperature, seed, 0, prompt_tokens, load_average, plain, tuple(runs))

    def _request(
        self, label: str, repeat: int, prompt: Prompt, temperature: float, seed: int
    ) -> tuple[Run, ouroboros.GenerationResult]:
        ends: list[float] = []
        tokens: list[int] = []
        began = time.perf_counter()
        with self._decoders[label].stream(
            prompt, max_new_tokens=self.settings["new_tokens"], temperature=temperature, seed=seed
        ) as stream:
            for chunk in stream:
                if chunk.token_ids:  # the last may be a rest of text alone
                    ends.append(time.perf_counter())
                    tokens.append(len(chunk.token_ids))
        end = time.perf_counter()
        result, stats = stream.result, stream.result.stats
        decoding = began + stats.prefill_seconds + stats.draft_prefill_seconds
        keep = repeat == 0 or label == SUBJECT  # the steps of further repeats say little, and fill the file
        steps = [round(1000 * (b - a), 1) for a, b in zip([decoding, *ends], ends, strict=False)] if keep else []
        run = replace(
            Run.of(label, repeat, result, began - self._zero, end - began),
            disturbed=any(a < end - self._zero and began - self._zero < b for a, b in self.disturbances),
            step_tokens=tuple(tokens) if keep else (),
            step_ms=tuple(steps),
        )
        return run, result


def first_difference(plain: Sequence[int], other: Sequence[int]) -> int | None:
    if tuple(plain) == tuple(other):
        return None
    pairs = enumerate(zip(plain, other, strict=False))
    return next((place for place, (one, two) in pairs if one != two), min(len(plain), len(other)))


if __name__ == "__main__":
    try:
        measure(json.loads(sys.argv[1]), Path(sys.argv[2]))
    except ouroboros.OuroborosError as error:
        sys.exit(f"error: {error}")
