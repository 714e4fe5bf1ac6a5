"""A real pair's tokens at the speed of a machine that is not here: simulated, and called so in every table.

    python -m benchmarks.virtual_pair --target DIR --draft DIR --machine avx512 --out raw.json     # from the root
    python -m benchmarks.virtual_pair --machine a100 --machine h200 --out raw.json
    python -m benchmarks.real_pair --table raw-avx512.json                                         # the tables

Every row of logits is computed by the real models, once for all methods and machines; what a forward takes comes from
the machine's T(n) and moves a clock that decoding, statistics and the controller read in place of the real one. So
acceptance is the real pair's and times are the machine's. Each method decodes each prompt cold, and begins with the
machine's T(n). What happens around the forwards takes no time here.

    avx512      two cores with AVX-512, the real pair in bf16 with a draft of 8 bits: T(n) as it was measured there
    a100, h200  the published shapes, Yi 34B and 6B in bf16, on one such GPU, by their roofline: the longer of the
                weights' bytes at the memory's speed and the arithmetic at the tensor cores', and 20 µs a layer

The raw file is that of real_pair.py, with ``simulated`` as its scenario.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

import ouroboros
from benchmarks.real_figures import decoding
from benchmarks.real_prompts import SETS, ChatPrompt, digest, load_prompts
from benchmarks.real_results import PLAIN, SUBJECT, Case, Raw, Run, write_raw
from benchmarks.real_run import SEED, first_difference, parse_method
from benchmarks.real_table import tables
from ouroboros.bench.records import environment
from ouroboros.bench.timed import TimedModel, VirtualClock
from ouroboros.config import options_for
from ouroboros.control.experience import Control
from ouroboros.control.profile import CostProfile, PairProfile, describe
from ouroboros.errors import OuroborosError
from ouroboros.models.base import CausalModel
from ouroboros.models.recorded import RecordedModel

METHODS = (
    PLAIN,
    *(f"speculative-{n}" for n in (3, 4, 5, 8, 12)),
    "suffix_decoding",
    "prompt_lookup",
    "lookahead",
    SUBJECT,
)
MODELS = "OUROBOROS_REAL_MODELS"
LAYER = 20e-6  # seconds around a layer's work on a GPU, launches in a graph: an assumption
Times = Sequence[tuple[int, float]]  # rows of a forward, seconds


@dataclass(frozen=True, slots=True)
class Machine:
    """``target``, ``draft``: T(n) at the sizes where it bends; between them it is a line, beyond the last one too."""

    name: str
    target: Times
    draft: Times


def roofline(parameters: float, layers: int, bandwidth: float, arithmetic: float) -> Times:
    """T(n) of bf16 weights.

    Args:
        bandwidth: bytes a second. arithmetic: operations a second, two for each parameter and row.
    """
    reading, row = 2 * parameters / bandwidth, 2 * parameters / arithmetic
    bend = max(2, int(reading / row))
    return [(n, layers * LAYER + max(reading, n * row)) for n in (1, bend, bend + 1, 4 * bend)]


def yi(name: str, bandwidth: float, arithmetic: float) -> Machine:
    """Yi 34B (60 layers) and 6B (32 layers) by the GPU's data sheet."""
    big, small = (34.4e9, 60), (6.06e9, 32)
    return Machine(name, roofline(*big, bandwidth, arithmetic), roofline(*small, bandwidth, arithmetic))


MACHINES = {
    "avx512": Machine(
        "two cores with AVX-512, T(n) as measured at 256 positions (simulated)",
        [(1, 0.041), (4, 0.044), (8, 0.050), (10, 0.058), (15, 0.078), (22, 0.096), (38, 0.147), (65, 0.238)],
        [(1, 0.0076), (4, 0.0103), (8, 0.014), (16, 0.025), (64, 0.090)],
    ),
    "a100": yi("A100 80 GB: 2.04 TB/s, 312 TFLOP/s, roofline of Yi 34B and 6B (simulated)", 2.039e12, 312e12),
    "h200": yi("H200: 4.8 TB/s, 989 TFLOP/s, roofline of Yi 34B and 6B (simulated)", 4.8e12, 989e12),
}


def profile(model: CausalModel, machine: Machine, times: Times) -> CostProfile:
    """T(n) as decoding knows it."""
    seconds = tuple(each for _, each in times)
    rows = tuple(n for n, _ in times)
    return CostProfile(describe(model.info), machine.name, rows, (1,), (seconds,), ((0.0,) * len(rows),))


def main(words: Sequence[str] | None = None) -> int:
    chosen = _parser().parse_args(words)
    names = list(dict.fromkeys(chosen.machine or ["avx512"]))
    prompts = load_prompts(chosen.prompts, chosen.limit)
    pair = ouroboros.load(chosen.target, chosen.draft, dtype=chosen.dtype, pool=False, options={"control": False})
    raws = {name: _raw(chosen, name, pair, prompts) for name in names}
    paths = {name: chosen.out.with_stem(f"{chosen.out.stem}-{name}") for name in names}
    for place, prompt in enumerate(prompts):
        for heat in chosen.temperatures:
            assert pair.draft is not None
            recorded = RecordedModel(pair.target), RecordedModel(pair.draft)
            for name, raw in raws.items():
                case = _case(prompt, heat, SEED + place, MACHINES[name], pair, recorded, chosen)
                raw.cases.append(case)
                write_raw(raw, paths[name])
                line = ", ".join(f"{run.label} {1000 * decoding(run):.1f}" for run in case.runs)
                Console(stderr=True).print(f"{name}: {prompt.name} at {heat:g}: {line} ms a token", soft_wrap=True)
    print(tables(list(raws.values())))
    return 0


def _case(
    prompt: ChatPrompt,
    heat: float,
    seed: int,
    machine: Machine,
    pair: ouroboros.Decoder,
    recorded: tuple[RecordedModel, RecordedModel],
    chosen: argparse.Namespace,
) -> Case:
    words = pair.tokenizer
    asked = prompt.ask(words is not None and words.has_chat_template)
    profiles = [
        profile(model, machine, times) for model, times in zip(recorded, (machine.target, machine.draft), strict=True)
    ]
    runs: list[Run] = []
    plain: tuple[int, ...] = ()
    prompt_tokens = 0
    for label in chosen.methods:
        clock = VirtualClock()
        clock.seconds = 1e-9  # it runs: prefill takes its time too
        target, draft = (TimedModel(m, p, clock) for m, p in zip(recorded, profiles, strict=True))
        method, options = parse_method(label)
        decoder = ouroboros.Decoder(
            target,
            draft if method in ("speculative", SUBJECT) else None,
            words,
            method,
            options_for(method, options or {}),
            control=Control(PairProfile(*profiles)),
            clock=clock,
        )
        found = decoder.generate(asked, max_new_tokens=chosen.new_tokens, temperature=heat, seed=seed)
        plain = found.token_ids if label == PLAIN else plain
        prompt_tokens = len(found.prompt_token_ids)
        run = Run.of(label, 0, found, 0.0, clock.seconds)
        runs.append(replace(run, differs_at=first_difference(plain, found.token_ids)))
    return Case(prompt.name, heat, seed, 0, prompt_tokens, 0.0, plain, tuple(runs))


def _raw(chosen: argparse.Namespace, name: str, pair: ouroboros.Decoder, prompts: Sequence[ChatPrompt]) -> Raw:
    settings: dict[str, Any] = {
        "target": Path(chosen.target).name,
        "draft": Path(chosen.draft).name,
        "dtype": chosen.dtype,
        "engine": "auto",
        "new_tokens": chosen.new_tokens,
        "temperatures": chosen.temperatures,
        "prompts": chosen.prompts,
        "limit": chosen.limit,
        "methods": list(chosen.methods),
        "repeats": 1,
        "scenario": f"simulated: {name}",
        "prompts_digest": digest(prompts),
    }
    assert pair.draft is not None
    models = {"target": describe(pair.target.info), "draft": describe(pair.draft.info)}
    return Raw(settings, environment(MACHINES[name].name, models), [{"load_seconds": 0.0, "disturbances": []}])


def _parser() -> argparse.ArgumentParser:
    folder = os.environ.get(MODELS)
    target, draft = (str(Path(folder) / f"qwen-coder-{size}") if folder else None for size in ("1.5b", "0.5b"))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.virtual_pair",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--target", default=target, required=target is None, help="directory or hub id of the target model")
    add("--draft", default=draft, required=draft is None, help="of the draft model")
    add("--dtype", default="bfloat16")
    add("--machine", action="append", choices=list(MACHINES), help="may be repeated; default avx512")
    add("--new-tokens", type=int, default=128, help="at most; default 128")
    add("--temperatures", type=lambda text: [float(part) for part in text.split(",")], default=[0.0, 0.8])
    add("--prompts", default="reporting", help=f"{' or '.join(SETS)} (built in), or a file; default reporting")
    add("--limit", type=int, help="only the first prompts")
    add("--methods", type=lambda text: text.split(","), default=list(METHODS), help="separated by commas, plain first")
    add("--out", type=Path, required=True, metavar="RAW.json", help="the raw files: RAW-avx512.json, …")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OuroborosError as error:
        sys.exit(f"error: {error}")
