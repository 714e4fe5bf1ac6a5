"""Where the time of a decoding step goes: target forwards, draft forwards, and everything outside both models.

    python benchmarks/step_overhead.py [--target 0.35b --draft 62m --dtype bfloat16 --new-tokens 96]

The embedded pair is grown to sizes at which a forward costs what it costs in use. Times come from one run, greedy and
sampled in turns prompt by prompt. Writes benchmarks/results/step_overhead.json.

On a machine that other programs load, run it with OMP_NUM_THREADS=1: the threads of one small operator wait for each
other for as long as the scheduler keeps one of them away, and shares no longer mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

import ouroboros
from ouroboros.bench.demo import demo_prompts
from ouroboros.control.machine import machine
from ouroboros.control.profile import describe
from ouroboros.models.base import CausalModel, ScoreRequest, Slot
from ouroboros.models.grow import load_grown
from ouroboros.pairing import EMBEDDED

HERE = Path(__file__).parent
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature 0.8": {"temperature": 0.8},
    "temperature 0.8, top-p 0.95, repetition penalty 1.1": {
        "temperature": 0.8,
        "top_p": 0.95,
        "repetition_penalty": 1.1,
    },
}


class Timed:
    """A model that counts the seconds of its forwards."""

    def __init__(self, model: CausalModel) -> None:
        self.info, self._model = model.info, model
        self.seconds, self.forwards = 0.0, 0

    def open(self) -> Slot:
        return self._model.open()

    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        self._model.prefill(slot, token_ids)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        began = time.perf_counter()
        logits = self._model.score(requests)
        if self.info.device.startswith("cuda"):
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - began
        self.forwards += 1
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="0.35b", help="a preset of ouroboros.models.shapes")
    parser.add_argument("--draft", default="62m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--new-tokens", type=int, default=96)
    arguments = parser.parse_args()
    place = {"dtype": arguments.dtype, "device": arguments.device}
    target = Timed(load_grown(EMBEDDED / "target", arguments.target, **place))
    draft = Timed(load_grown(EMBEDDED / "draft", arguments.draft, **place))
    decoder = ouroboros.load(target, draft, tokenizer=EMBEDDED / "target", pool=False)
    prompts = [prompt.text for prompt in demo_prompts()]
    decoder.generate(prompts[0], max_new_tokens=16)  # to warm up
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    for number, prompt in enumerate(track(prompts * 3, console=Console(stderr=True))):
        for name, settings in SETTINGS.items():
            before = target.seconds, draft.seconds, target.forwards
            stats = decoder.generate(
                prompt, max_new_tokens=arguments.new_tokens, seed=number, ignore_eos=True, **settings
            ).stats
            steps = target.forwards - before[2]
            spent = target.seconds - before[0], draft.seconds - before[1]
            rows[name].append(
                {
                    "step_ms": 1e3 * stats.decode_seconds / steps,
                    "target_ms": 1e3 * spent[0] / steps,
                    "draft_ms": 1e3 * spent[1] / steps,
                    "outside": 1 - sum(spent) / stats.decode_seconds,
                }
            )
    print("| setting | step, ms | target, ms | draft, ms | outside both | its quartiles |")
    print("|---|---|---|---|---|---|")
    for name, found in rows.items():
        middle = {key: statistics.median(row[key] for row in found) for key in found[0]}
        low, _, high = statistics.quantiles((row["outside"] for row in found), n=4)
        times = f"{middle['step_ms']:.1f} | {middle['target_ms']:.1f} | {middle['draft_ms']:.1f}"
        print(f"| {name} | {times} | {middle['outside']:.1%} | {low:.1%} … {high:.1%} |")
    result = {
        "target": f"{describe(target.info)}; {target.info.grown}",
        "draft": f"{describe(draft.info)}; {draft.info.grown}",
        "machine": machine(target.info.device),
        "load": os.getloadavg()[0],
        "version": ouroboros.__version__,
        "new_tokens": arguments.new_tokens,
        "rows": rows,
    }
    (HERE / "results" / "step_overhead.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
