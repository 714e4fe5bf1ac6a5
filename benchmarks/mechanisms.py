"""What each mechanism is worth, in counts that no clock disturbs: tokens and draft forwards per target forward.

    python benchmarks/mechanisms.py                 # measures what is missing, then writes the table
    python benchmarks/mechanisms.py --report        # the table alone, from the raw results

The embedded pair in fp32 on the 82 HumanEval prompts of benchmarks/data, 128 new tokens, end-of-sequence
ignored, greedy and temperature 1 (the seed is the prompt's number). Cold: an empty pool for each prompt. Warm: a
pool that was filled from the other half of the prompts first and goes on learning. Raw results:
benchmarks/results/mechanisms.jsonl, a line a setting; an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import platform
import random
import subprocess
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

import ouroboros
from ouroboros.config import METHODS, options_from_strings
from ouroboros.stats import repeated_4grams

HERE = Path(__file__).parent
RAW = HERE / "results" / "mechanisms.jsonl"
TABLE = HERE / "mechanisms.md"
NEW_TOKENS = 128
COUNTS = ("new_tokens", "target_forwards", "draft_forwards", "draft_tokens", "accepted_tokens")


@dataclass(frozen=True)
class Setting:
    name: str
    method: str
    options: dict[str, str]
    pool: str  # cold, warm, or none for methods without a pool
    temperature: float

    @property
    def key(self) -> str:
        return f"{self.name}|{self.pool}|{self.temperature}"


def settings() -> list[Setting]:
    found = []
    published = {"siblings": "0", "side_branches": "0", "min_chance": "0"}
    variants = {
        "all on": {},
        "without phrase drafting": {"phrase_drafting": "off"},
        "without lengthening": {"lengthening": "off"},
        "without harvest": {"harvest": "off"},
        "without reuse": {"reuse": "off"},
        "without second choices": {"siblings": "0", "side_branches": "0"},
        "the four mechanisms alone": published,
    }
    for temperature in (0.0, 1.0):
        add = lambda *parts: found.append(Setting(*parts, temperature))  # noqa: B023, E731
        add("autoregressive", "autoregressive", {}, "none")
        for gamma in range(2, 11):
            add(f"speculative γ={gamma}", "speculative", {"draft_tokens": str(gamma)}, "none")
        add("prompt_lookup", "prompt_lookup", {}, "none")
        for pool in ("cold", "warm"):
            add("lookahead", "lookahead", {}, pool)
            add("lookahead without prompt n-grams", "lookahead", {"prompt_ngrams": "off"}, pool)
            for name, options in variants.items():
                if not (name == "without reuse" and pool == "cold"):  # a cold pool is never reused
                    add(f"ouroboros, {name}", "ouroboros", options, pool)
    return found


def measure(setting: Setting) -> dict[str, Any]:
    torch.set_num_threads(1)
    options = options_from_strings(setting.method, setting.options)
    lines = (HERE / "data" / "humaneval.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    rows: list[dict[str, Any]] = [{} for _ in prompts]
    halves = [range(0, len(prompts), 2), range(1, len(prompts), 2)]

    def run(decoder: ouroboros.Decoder, number: int) -> dict[str, Any]:
        result = decoder.generate(
            prompts[number],
            max_new_tokens=NEW_TOKENS,
            temperature=setting.temperature,
            seed=number,
            ignore_eos=True,
        )
        stats = result.stats.to_dict()
        return {
            **{name: stats[name] for name in COUNTS},
            "accepted_by_origin": stats["accepted_by_origin"],
            "repeated_4grams": repeated_4grams(result.token_ids),
            "tokens_sha1": hashlib.sha1(str(result.token_ids).encode()).hexdigest()[:16],
        }

    for half, other in zip(halves, reversed(halves), strict=True):
        pool = None if setting.pool == "warm" else False
        decoder = ouroboros.load(method=setting.method, options=options, dtype="float32", device="cpu", pool=pool)
        if setting.pool == "warm":
            for number in other:
                run(decoder, number)
        for number in half:
            rows[number] = run(decoder, number)
    return {
        **dataclasses.asdict(setting),
        "options_used": dataclasses.asdict(options),
        "prompts": rows,
        "versions": {
            "ouroboros": ouroboros.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": platform.machine(),
        "commit": subprocess.check_output(["git", "describe", "--always", "--dirty"], text=True).strip(),
    }


def total(rows: list[dict[str, Any]], part: str, whole: str) -> float:
    return sum(row[part] for row in rows) / max(1, sum(row[whole] for row in rows))


def interval(rows: list[dict[str, Any]], part: str, whole: str) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of sums, over prompts."""
    rng = random.Random(0)
    values = sorted(total(rng.choices(rows, k=len(rows)), part, whole) for _ in range(400))
    return values[10], values[-11]


def report(results: list[dict[str, Any]]) -> str:
    out = [
        "# What each mechanism is worth",
        "",
        "Made by `python benchmarks/mechanisms.py` (its header says how); raw: `results/mechanisms.jsonl`. The",
        f"embedded pair in fp32, 82 HumanEval prompts, {NEW_TOKENS} new tokens each, end-of-sequence ignored. Counts,",
        "not speeds: *tokens per target forward* include the bonus token (95 % bootstrap interval over prompts);",
        "*rows*: tokens that one target forward computes; *as plain*: outputs equal to those of plain decoding.",
        "⚠ marks rows whose outputs repeat more than 20 % of their 4-grams: loops flatter every method that copies.",
    ]
    by_key = {result_key(result): result for result in results}
    for temperature in (0.0, 1.0):
        plain = by_key.get(f"autoregressive|none|{temperature}")
        if plain is None:
            continue
        loops = sum(row["repeated_4grams"] for row in plain["prompts"]) / len(plain["prompts"])
        out += ["", f"## {'Greedy' if temperature == 0 else 'Temperature 1'}", ""]
        out.append(f"Share of repeated 4-grams of the outputs (the same for every method): {loops:.0%}.")
        out += [
            "",
            "| method | pool | tokens per target forward | draft forwards per token | rows | acceptance | as plain |",
            "|---|---|---|---|---|---|---|",
        ]
        for setting in settings():
            result = by_key.get(setting.key)
            if setting.temperature == temperature and result is not None:
                out.append(line(setting, result["prompts"], plain["prompts"]))
        out += ["", *comparison(by_key, temperature)]
    return "\n".join(out) + "\n"


def result_key(result: dict[str, Any]) -> str:
    return f"{result['name']}|{result['pool']}|{result['temperature']}"


def line(setting: Setting, rows: list[dict[str, Any]], plain: list[dict[str, Any]]) -> str:
    equal = sum(row["tokens_sha1"] == other["tokens_sha1"] for row, other in zip(rows, plain, strict=True))
    low, high = interval(rows, "new_tokens", "target_forwards")
    flag = " ⚠" if sum(row["repeated_4grams"] for row in rows) / len(rows) > 0.2 else ""
    cells = [
        setting.name + flag,
        setting.pool,
        f"{total(rows, 'new_tokens', 'target_forwards'):.2f} ({low:.2f}–{high:.2f})",
        f"{total(rows, 'draft_forwards', 'new_tokens'):.2f}",
        f"{1 + total(rows, 'draft_tokens', 'target_forwards'):.1f}",
        f"{total(rows, 'accepted_tokens', 'draft_tokens'):.2f}",
        f"{equal} of {len(rows)}",
    ]
    return "| " + " | ".join(cells) + " |"


def comparison(by_key: dict[str, dict[str, Any]], temperature: float) -> list[str]:
    """Ouroboros against the γ that spends as many draft forwards per token or a little more."""

    def spent(result: dict[str, Any]) -> float:
        return total(result["prompts"], "draft_forwards", "new_tokens")

    def made(result: dict[str, Any]) -> float:
        return total(result["prompts"], "new_tokens", "target_forwards")

    out = []
    found = [by_key.get(f"speculative γ={gamma}|none|{temperature}") for gamma in range(2, 11)]
    chains = [chain for chain in found if chain is not None]
    for pool in ("cold", "warm"):
        ours = by_key.get(f"ouroboros, all on|{pool}|{temperature}")
        if ours is None or len(chains) < len(found):
            continue
        near = min((chain for chain in chains if spent(chain) >= spent(ours)), key=spent)
        best = max(chains, key=made)
        out.append(
            f"`ouroboros` ({pool}) makes {made(ours) / made(near):.2f} × the tokens per target forward of "
            f"`{near['name']}`, the nearest from above in draft forwards per token ({spent(ours):.2f} against "
            f"{spent(near):.2f}), and {made(ours) / made(best):.2f} × those of `{best['name']}`, the best chain.  "
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--report", action="store_true", help="write the table from the raw results, measure nothing")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    assert set(METHODS) >= {setting.method for setting in settings()}
    RAW.parent.mkdir(exist_ok=True)
    results = [json.loads(text) for text in RAW.read_text(encoding="utf-8").splitlines()] if RAW.exists() else []
    done = {result_key(result) for result in results}
    missing = [] if arguments.report else [setting for setting in settings() if setting.key not in done]
    if missing:
        with Progress() as progress, ProcessPoolExecutor(arguments.processes) as workers:
            bar = progress.add_task("settings", total=len(missing))
            for future in as_completed([workers.submit(measure, setting) for setting in missing]):
                results.append(future.result())
                with RAW.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(results[-1], separators=(",", ":")) + "\n")
                progress.advance(bar)
    TABLE.write_text(report(results), encoding="utf-8")
    print(f"{TABLE}: {len(results)} of {len(settings())} settings")


if __name__ == "__main__":
    main()
