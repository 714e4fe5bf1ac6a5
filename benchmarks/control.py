"""The controller against fixed settings, a draft model that only guesses and text without sense, in measured times.

    python benchmarks/control.py [--prompts 6 --new-tokens 64]   # measures T(n), then replays; --costs: the last T(n)

Tokens are the embedded pair's; time is the sum of T(n) of the pair grown to 0.35 B and 62 M parameters, measured first,
by a clock of its own (bench/timed.py): what decides by time decides as on a quiet machine of these costs, and nothing
else on the machine disturbs the comparison. Python's own time between forwards is not in it (step_overhead.py has it).
Each fixed setting is tried on every task; the best one of each task is what the controller is held against,
which never saw the task: cold pool and nothing learned with every prompt. Raw: benchmarks/results/control.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

import ouroboros
from ouroboros.bench.profiling import measure
from ouroboros.bench.settings import NINE
from ouroboros.bench.tasks import load_task
from ouroboros.bench.timed import TimedModel, VirtualClock
from ouroboros.config import SamplingParams, options_for
from ouroboros.control.experience import Control
from ouroboros.control.profile import CostProfile, PairProfile, describe
from ouroboros.generate import Decoder
from ouroboros.models.base import CausalModel, ScoreRequest, Slot
from ouroboros.models.grow import load_grown
from ouroboros.pairing import EMBEDDED
from ouroboros.prompts import encode

HERE = Path(__file__).parent
RAW, TABLE = HERE / "results" / "control.json", HERE / "control.md"
ROWS = (1, 2, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64)
CONTEXT = 256
TEMPERATURES = (0.0, 0.8)
LONGEST = 400  # tokens of a prompt; more are cut from the left
PLAIN, CONTROL, GUESSING = "plain decoding", "controller", "controller, guessing draft"
GRID: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"speculative, γ = {g}": ("speculative", {"draft_tokens": g}) for g in (1, 2, 3, 4, 5, 7)},
    **{
        f"fixed, γ = {gamma}, {tree} tokens, {candidates} candidates": (
            "ouroboros",
            {"control": False, "draft_tokens": gamma, "tree_tokens": tree, "candidates": candidates, "window": 0,
             "side_branches": side, "siblings": siblings, "branch_tokens": length},
        )
        for gamma, tree, candidates, side, siblings, length in (
            (2, 6, 2, 1, 1, 4), (3, 6, 2, 1, 1, 4), (3, 8, 2, 1, 1, 4), (4, 8, 2, 1, 1, 4), (5, 8, 2, 1, 1, 6),
            (4, 12, 3, 2, 2, 8), (6, 12, 3, 2, 2, 8), (5, 32, 4, 3, 2, 8),
        )
    },
}  # fmt: skip


class Guessing:
    """A draft model whose logits are noise: it costs what a draft costs, and its choices are worth nothing."""

    def __init__(self, model: CausalModel) -> None:
        self.info = model.info
        self._model = model

    def open(self) -> Slot:
        return self._model.open()

    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        self._model.prefill(slot, token_ids)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        found = self._model.score(requests)
        return [torch.randn(x.shape, generator=torch.Generator().manual_seed(len(x))) for x in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=6, help="of each task")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--costs", action="store_true", help="take T(n) from the last results in place of measuring it")
    arguments = parser.parse_args()
    costs = read_costs() if arguments.costs else measured_costs()
    pair = ouroboros.load(device="cpu", dtype="float32")
    assert pair.tokenizer is not None
    vocab_size = pair.target.info.vocab_size
    source = random.Random(0)
    tasks = {
        task: [encode(item.prompt, pair.tokenizer, vocab_size, 2**31)[-LONGEST:]
               for item in load_task(task, limit=arguments.prompts)]
        for task in NINE
    }  # fmt: skip
    tasks["random tokens"] = [[source.randrange(1, vocab_size) for _ in range(100)] for _ in range(arguments.prompts)]
    rows: list[dict[str, Any]] = []
    with Progress(console=Console(stderr=True)) as progress:
        work = progress.add_task("replay", total=len(tasks) * len(TEMPERATURES) * arguments.prompts)
        for task, prompts in tasks.items():
            for temperature in TEMPERATURES:
                for number, prompt in enumerate(prompts):
                    params = SamplingParams(arguments.new_tokens, temperature, seed=number, ignore_eos=True)
                    rows += [
                        {"task": task, "temperature": temperature, "prompt": number, **row}
                        for row in run(pair, costs, prompt, params)
                    ]
                    progress.advance(work)
    result = {
        "settings": {**vars(arguments), "version": ouroboros.__version__},
        "costs": dataclasses.asdict(costs),
        "rows": rows,
    }
    RAW.write_text(packed(result))
    TABLE.write_text(report(result))
    print(TABLE.read_text())


def packed(result: dict[str, Any]) -> str:
    """JSON with the rows' names once, one row a line, and seconds to five digits."""
    columns = list(result["rows"][0])
    values = [[float(f"{v:.5g}") if isinstance(v, float) else v for v in row.values()] for row in result["rows"]]
    head = json.dumps({**result, "rows": None, "columns": columns})
    lines = ",\n".join(json.dumps(row, separators=(",", ":"), ensure_ascii=False) for row in values)
    return head.replace('"rows": null', f'"rows": [\n{lines}\n]') + "\n"


def measured_costs() -> PairProfile:
    target = load_grown(EMBEDDED / "target", "0.35b", dtype="bfloat16", device="cpu")
    draft = load_grown(EMBEDDED / "draft", "62m", dtype="w8a8", device="cpu")
    return PairProfile(*(measure(model, ROWS, (CONTEXT,), 9, typical=min) for model in (target, draft)))


def read_costs() -> PairProfile:
    found = json.loads(RAW.read_text())["costs"]

    def profile(values: dict[str, Any]) -> CostProfile:
        tables = {name: tuple(map(tuple, values[name])) for name in ("seconds", "spread")}
        return CostProfile(**{**values, **tables, "rows": tuple(values["rows"]), "contexts": tuple(values["contexts"])})

    return PairProfile(profile(found["target"]), profile(found["draft"]))


def run(pair: Decoder, costs: PairProfile, prompt: list[int], params: SamplingParams) -> list[dict[str, Any]]:
    assert pair.draft is not None
    contestants: list[tuple[str, str, dict[str, Any], Callable[[CausalModel], CausalModel]]] = [
        (PLAIN, "autoregressive", {}, lambda model: model),
        *((name, method, options, lambda model: model) for name, (method, options) in GRID.items()),
        (CONTROL, "ouroboros", {}, lambda model: model),
        (GUESSING, "ouroboros", {}, Guessing),
    ]
    found = []
    expected: tuple[int, ...] | None = None
    for name, method, options, wrap in contestants:
        clock = VirtualClock()
        target = TimedModel(pair.target, costs.target, clock)
        draft = TimedModel(wrap(pair.draft), costs.draft, clock) if method in ("speculative", "ouroboros") else None
        known = dataclasses.replace(costs.target, model=describe(target.info))
        begun = Control(PairProfile(known, dataclasses.replace(costs.draft, model=describe(pair.draft.info))))
        decoder = Decoder(target, draft, None, method, options_for(method, options), control=begun, clock=clock)
        result = decoder.generate(prompt, params)
        expected = result.token_ids if expected is None else expected
        assert result.token_ids == expected, f"{name} wrote other tokens"
        stats = result.stats
        asked = [decision for decision in result.decisions if decision.probe]
        found.append(
            {
                "name": name,
                "seconds": clock.seconds,
                "tokens": stats.new_tokens,
                "target_forwards": stats.target_forwards,
                "draft_forwards": stats.draft_forwards,
                "probes": len(asked),
                "draft_seconds": sum(costs.draft.cost(n, CONTEXT) for d in result.decisions for n in d.draft_rows),
            }
        )
    return found


def report(result: dict[str, Any]) -> str:
    rows, settings, costs = result["rows"], result["settings"], result["costs"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = [
        "# The controller in measured times",
        "",
        f"`python benchmarks/control.py`, version {settings['version']}: {settings['prompts']} prompts a task × "
        f"{settings['new_tokens']} tokens, cold, nothing learned before; the clock is T(n) of the grown pair, ms:",
        "",
        "| rows | " + " | ".join(map(str, costs["target"]["rows"])) + " |",
        "|---" * (1 + len(costs["target"]["rows"])) + "|",
        *("| " + " | ".join([name, *(f"{1e3 * s:.1f}" for s in costs[name]["seconds"][0])]) + " |"
          for name in ("target", "draft")),
        "",
        f"({costs['target']['model']}; {costs['draft']['model']}; {costs['target']['machine']})",
    ]  # fmt: skip
    for temperature in sorted({row["temperature"] for row in rows}):
        lines += [
            "",
            f"## {'Greedy' if temperature == 0 else f'Temperature {temperature:g}'}",
            "",
            "Speed-up over plain decoding.",
            "",
            "| task | best of speculative | best fixed setting | controller | ÷ best fixed | guessing draft | wasted |",
            "|---|---|---|---|---|---|---|",
        ]
        for task in tasks:
            mine = [row for row in rows if row["task"] == task and row["temperature"] == temperature]
            seconds: dict[str, float] = {}
            for row in mine:
                seconds[row["name"]] = seconds.get(row["name"], 0.0) + row["seconds"]
            speed = {name: seconds[PLAIN] / taken for name, taken in seconds.items()}
            chain = max((name for name in speed if name.startswith("speculative")), key=speed.__getitem__)
            fixed = max((name for name in speed if name.startswith(("fixed", "speculative"))), key=speed.__getitem__)
            wasted = sum(row["draft_seconds"] for row in mine if row["name"] == GUESSING) / seconds[GUESSING]
            lines.append(
                f"| {task} | {speed[chain]:.2f} ({chain.partition(', ')[2]}) "
                f"| {speed[fixed]:.2f} ({fixed.partition(', ')[2]}) | **{speed[CONTROL]:.2f}** "
                f"| {speed[CONTROL] / speed[fixed]:.2f} | {speed[GUESSING]:.2f} | {wasted:.1%} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
