"""Decoding speed of every method against plain decoding, on the embedded pair grown to the published ratio of sizes.

    python benchmarks/speed.py [--target 0.35b --draft 62m --dtype bfloat16 --prompts 16 --new-tokens 96]

Methods take turns prompt by prompt, in an order that rotates; every output is compared with plain decoding's. Cold: an
empty pool for each prompt; warm: the pool of the prompts before. Speed-up: plain decoding's seconds over the method's,
summed over prompts, with a 95 % bootstrap interval over prompts. The models are grown: what they say is the embedded
pair's, what they cost is that of their size. Raw results: benchmarks/results/speed.json, table: benchmarks/speed.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

import ouroboros
from ouroboros.config import OuroborosOptions
from ouroboros.control.cost import describe, machine
from ouroboros.drafting.factory import NEEDS_DRAFT
from ouroboros.models.grow import load_grown
from ouroboros.pairing import EMBEDDED
from ouroboros.stats import repeated_4grams

HERE = Path(__file__).parent
RAW, TABLE = HERE / "results" / "speed.json", HERE / "speed.md"
PROMPTS = HERE / "data" / "humaneval.jsonl"
METHODS: dict[str, tuple[str, dict[str, Any], bool]] = {  # name: method, options, whether the pool stays
    "autoregressive": ("autoregressive", {}, False),
    "prompt lookup": ("prompt_lookup", {}, False),
    "lookahead": ("lookahead", {}, False),
    "suffix decoding": ("suffix_decoding", {}, False),
    "token recycling": ("token_recycling", {}, False),
    "speculative, γ = 2": ("speculative", {"draft_tokens": 2}, False),
    "speculative, γ = 4": ("speculative", {"draft_tokens": 4}, False),
    "speculative, γ = 7": ("speculative", {"draft_tokens": 7}, False),
    "ouroboros, wide, cold": ("ouroboros", dataclasses.asdict(OuroborosOptions()), False),
    "ouroboros, cold": ("ouroboros", {}, False),  # the defaults, which are narrow on a CPU
    "ouroboros, warm": ("ouroboros", {}, True),
}
TEMPERATURES = (0.0, 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="0.35b", help="a preset of ouroboros.models.shapes")
    parser.add_argument("--draft", default="62m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=96)
    arguments = parser.parse_args()
    place = {"dtype": arguments.dtype, "device": arguments.device}
    target = load_grown(EMBEDDED / "target", arguments.target, **place)
    draft = load_grown(EMBEDDED / "draft", arguments.draft, **place)
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()][: arguments.prompts]
    rows: list[dict[str, Any]] = []
    for temperature in TEMPERATURES:
        decoders = {
            name: ouroboros.load(
                target,
                draft if method in NEEDS_DRAFT else None,
                tokenizer=EMBEDDED / "target",
                method=method,
                options=options,
                pool=None if warm else False,
            )
            for name, (method, options, warm) in METHODS.items()
        }
        for decoder in decoders.values():
            decoder.generate(texts[-1], max_new_tokens=8)
        for number, text in enumerate(track(texts, f"temperature {temperature}", console=Console(stderr=True))):
            names = list(METHODS)
            plain: tuple[int, ...] = ()
            for name in ["autoregressive", *(n for n in names[number % len(names) :] + names if n != "autoregressive")]:
                if any(r["method"] == name and r["prompt"] == number and r["temperature"] == temperature for r in rows):
                    continue
                result = decoders[name].generate(
                    text, max_new_tokens=arguments.new_tokens, temperature=temperature, seed=number, ignore_eos=True
                )
                plain = result.token_ids if name == "autoregressive" else plain
                stats = result.stats
                rows.append(
                    {
                        "method": name,
                        "temperature": temperature,
                        "prompt": number,
                        "seconds": stats.decode_seconds,
                        "tokens": stats.new_tokens,
                        "target_forwards": stats.target_forwards,
                        "draft_forwards": stats.draft_forwards,
                        "same": result.token_ids == plain,
                        "repeated": repeated_4grams(result.token_ids),
                    }
                )
    settings = {
        **vars(arguments),
        "target": f"{describe(target.info)}; {target.info.engine}; {target.info.grown}",
        "draft": f"{describe(draft.info)}; {draft.info.engine}; {draft.info.grown}",
        "machine": machine(target.info.device),
        "version": ouroboros.__version__,
    }
    RAW.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    TABLE.write_text(report(settings, rows))
    print(TABLE.read_text())


def speed_up(plain: list[float], mine: list[float]) -> tuple[float, float, float]:
    source = random.Random(0)
    draws = [source.choices(range(len(plain)), k=len(plain)) for _ in range(2000)]
    ratios = sorted(sum(plain[i] for i in draw) / sum(mine[i] for i in draw) for draw in draws)
    return sum(plain) / sum(mine), ratios[50], ratios[-51]


def report(settings: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Decoding speed",
        "",
        f"`python benchmarks/speed.py`, {settings['machine']}, version {settings['version']}.",
        "",
        f"- target: {settings['target']}",
        f"- draft: {settings['draft']}",
        f"- {settings['prompts']} HumanEval prompts × {settings['new_tokens']} new tokens, end of text ignored",
        "",
        "The models are grown: the embedded pair's text at the cost of these sizes.",
    ]
    for temperature in TEMPERATURES:
        found = [row for row in rows if row["temperature"] == temperature]
        plain = [row["seconds"] for row in found if row["method"] == "autoregressive"]
        loops = statistics.mean(row["repeated"] for row in found if row["method"] == "autoregressive")
        flag = ": this text loops, which flatters every method that drafts from it" if loops > 0.2 else ""
        lines += [
            "",
            f"## {'Greedy' if not temperature else f'Temperature {temperature}'}",
            "",
            f"{loops:.0%} of the 4-grams are repeated{flag}.",
            "",
            "| method | speed-up | 95 % | tokens/s | tokens per target forward | draft forwards per token | same |",
            "|---|---|---|---|---|---|---|",
        ]
        for name in METHODS:
            own = [row for row in found if row["method"] == name]
            ratio, low, high = speed_up(plain, [row["seconds"] for row in own])
            tokens, seconds = sum(row["tokens"] for row in own), sum(row["seconds"] for row in own)
            forwards = tokens / sum(row["target_forwards"] for row in own)
            drafts = sum(row["draft_forwards"] for row in own) / tokens
            same = sum(row["same"] for row in own)
            lines.append(
                f"| {name} | {ratio:.2f} | {low:.2f} … {high:.2f} | {tokens / seconds:.1f} | {forwards:.2f} | "
                f"{drafts:.2f} | {same} of {len(own)} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
