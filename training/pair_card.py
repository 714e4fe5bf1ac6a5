"""The card of the embedded pair: figures of the finished pair on prompts that were not in its corpus, and the page.

Greedy and sampled continuations are the target's own, made by the library; what the draft would have been accepted is
replayed from them (ouroboros.training.replay).
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import ouroboros
from ouroboros.stats import repeated_4grams
from ouroboros.training.modules import read_module
from ouroboros.training.records import Record, jobs_for, record
from ouroboros.training.replay import agreements, chain

TEMPERATURES = (0.0, 0.8, 1.0)
GAMMAS = (2, 3, 5, 10)


def write_card(
    out: Path,
    facts: dict[str, Any],
    prompts: Sequence[str],
    new_tokens: int,
    bar: Callable[[str], Callable[[int, int, str], None]],
) -> None:
    """Measures the pair in ``out`` and writes README.md and card.json."""
    decoder = ouroboros.load(out / "target", out / "draft", dtype="float32", device="cpu")
    assert decoder.tokenizer is not None
    ids = [decoder.tokenizer.encode(prompt) for prompt in prompts]
    jobs = jobs_for(ids, TEMPERATURES, 1, facts["seed"], every=True)
    file = out / "work" / "card.jsonl"
    file.unlink(missing_ok=True)
    tell = bar("card")
    records = record(decoder, jobs, new_tokens, file, lambda done, total: tell(done, total, ""))
    draft = read_module(out / "draft", torch.float32, torch.device("cpu"))
    figures = []
    for temperature in TEMPERATURES:
        some = [one for one in records if one.temperature == temperature]
        texts = [decoder.tokenizer.decode(one.tokens) for one in some]
        agreed = agreements(draft, some, decoder.target.info.vocab_size)
        figures.append(
            {
                "temperature": temperature,
                "agreement": ratio(sum(map(sum, agreed)), sum(map(len, agreed))),
                "chains": {gamma: chain_tokens(agreed, some, gamma) for gamma in GAMMAS},
                "repeated_4grams": sum(repeated_4grams(one.tokens) for one in some) / len(some),
                "parses": sum(map(parses, prompts, texts)) / len(some),
                "ended": sum(one.tokens[-1] == 0 for one in some) / len(some),
            }
        )
    facts["figures"] = {"prompts": len(prompts), "new_tokens": new_tokens, "by_temperature": figures}
    (out / "card.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    (out / "README.md").write_text(page(facts), encoding="utf-8")


def chain_tokens(agreed: Sequence[Sequence[bool]], records: Sequence[Record], gamma: int) -> float:
    """Tokens per target forward of chains of γ draft tokens."""
    forwards = sum(chain(row, gamma, one.budget) for row, one in zip(agreed, records, strict=True))
    return ratio(sum(len(one.tokens) for one in records), forwards)


def parses(prompt: str, text: str) -> bool:
    """Whether prompt and completion, up to the end of the function, are Python."""
    lines = text.split("\n")
    end = next((i for i, line in enumerate(lines) if i and line and not line[0].isspace()), len(lines))
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(prompt + "\n".join(lines[:end]))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def page(facts: Mapping[str, Any]) -> str:
    target, draft, corpus, figures = (facts[name] for name in ("target", "draft", "corpus", "figures"))

    def both(label: str, say: Callable[[Mapping[str, Any]], str]) -> str:
        return f"| {label} | {say(target)} | {say(draft)} |"

    def shape(one: Mapping[str, Any]) -> str:
        return f"{one['hidden']} × {one['layers']} × {one['heads']}, {one['inner']}"

    seconds = ", ".join(f"{name} {value:.0f}" for name, value in facts["seconds"].items())
    epochs = target["tokens"] / facts["tokens"]["training"]
    lines = [
        "---",
        "license: apache-2.0",
        "language: code",
        "pipeline_tag: text-generation",
        "tags: [python, speculative-decoding]",
        "---",
        "",
        "# The embedded pair",
        "",
        "Two small language models of Python code that lie in the package, so that there is something real to",
        "decode with from the first minute: offline, on a CPU, with no download. `ouroboros.load()` with no target",
        "named takes them. Made by `python training/embedded_pair.py`, which documents how.",
        "",
        "| | `target/` | `draft/` |",
        "|---|---|---|",
        "| architecture | Llama, tied embeddings | the same |",
        both("hidden × layers × heads, inner", shape),
        both("parameters", lambda one: f"{one['parameters'] / 1e6:.1f} M"),
        both("steps, tokens seen", lambda one: f"{one['steps']:,}, {one['tokens'] / 1e6:.1f} M"),
        both("loss on text set aside, nats a token", lambda one: f"{one['validation']['loss']:.2f}"),
        f"| likeliest token is the target's, on that text | | {draft['validation']['greedy_agreement']:.0%} |",
        "",
        "One byte-level BPE tokenizer of 8,192 tokens, `<|endoftext|>` = 0 at the end of every document. The context",
        f"is 2,048 tokens; training saw windows of {facts['window']}. Seed {facts['seed']}, on {facts['device']};",
        f"seconds by stage: {seconds}.",
        "",
        "## What it is for, and what not",
        "",
        "For demonstrations, tests, and measuring speed and acceptance. Not for writing code, and not for scores: the",
        "output is seldom correct. It has had no safety training of any kind. Greedy output of models this small",
        "loops, which flatters every method that drafts from what was written before: judge by sampled runs too.",
        "",
        "## Acceptance",
        "",
        f"On the target's own continuations of {figures['prompts']} HumanEval prompts (up to {figures['new_tokens']}",
        "tokens): how often the draft's draw is the target's under the noise that they share (greedy: its likeliest",
        "token), tokens per target forward of chains of γ draft tokens, and what the text is like: repeated 4-grams,",
        "completions that parse as Python up to the end of the function, texts that ended by themselves.",
        "",
        "| | agreement | tokens per target forward, γ = 2 / 3 / 5 / 10 | repeated 4-grams | parses | ended |",
        "|---|---|---|---|---|---|",
    ]
    for row in figures["by_temperature"]:
        name = "greedy" if row["temperature"] == 0 else f"temperature {row['temperature']:g}"
        chains = " / ".join(f"{value:.2f}" for value in row["chains"].values())
        lines.append(
            f"| {name} | {row['agreement']:.3f} | {chains} | {row['repeated_4grams']:.0%} | {row['parses']:.0%} | "
            f"{row['ended']:.0%} |"
        )
    sets = ", ".join(corpus["evaluation"]) or "none"
    lines += [
        "",
        "## Training text and licences",
        "",
        f"{facts['tokens']['training'] / 1e6:.1f} M tokens, seen {epochs:.1f} times by the target: Python files of the",
        "machine that it was trained on, their module-level functions once more, and school mathematics. Documents",
        f"that share 13 consecutive words with the evaluation sets ({sets}) were left out: {corpus['removed']}.",
        f"The draft saw the same text and {facts['text']['texts']:,} texts of the target; it learned the target's",
        "distribution over the next token, not the text.",
        "The weights are distributed under the project's own licence, Apache-2.0.",
        "",
        "| source | licence | characters | left out |",
        "|---|---|---|---|",
    ]
    for row in corpus["sources"]:
        lines.append(f"| {row['source']} | {row['licence']} | {row['characters']:,} | {row['removed']} |")
    return "\n".join(lines) + "\n"
