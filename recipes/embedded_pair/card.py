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
from ouroboros.training.records import Record, jobs_for
from ouroboros.training.replay import agreements, chain

TEMPERATURES = (0.0, 0.8, 1.0)
GAMMAS = (2, 3, 5, 10)
MOST_TOKENS = 256  # of a completion that may end
FORBIDDEN = -1e9  # a logit


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
    draft = Endless(read_module(out / "draft", torch.float32, torch.device("cpu")))
    size = decoder.target.info.vocab_size
    figures = []
    for temperature in TEMPERATURES:
        name = "card, greedy" if temperature == 0 else f"card, temperature {temperature:g}"
        endless = write(decoder, ids, new_tokens, temperature, facts["seed"], False, bar(name))
        ended = write(decoder, ids, MOST_TOKENS, temperature, facts["seed"], True, bar(f"{name}, to the end"))
        agreed = agreements(draft, endless, size)
        texts = [decoder.tokenizer.decode(one.tokens) for one in ended]
        count = len(prompts)
        figures.append(
            {
                "temperature": temperature,
                "agreement": ratio(sum(map(sum, agreed)), sum(map(len, agreed))),
                "first": among_first(draft, endless, 1),
                "first_three": among_first(draft, endless, 3),
                "chains": {gamma: chain_tokens(agreed, endless, gamma) for gamma in GAMMAS},
                "repeated_4grams": sum(repeated_4grams(one.tokens) for one in endless) / count,
                "repeated_4grams_ended": sum(repeated_4grams(one.tokens) for one in ended) / count,
                "ended": sum(one.tokens[-1] == 0 for one in ended) / count,
                "tokens": sum(len(one.tokens) for one in ended) / count,
                "parses": sum(map(parses, prompts, texts)) / count,
                "bodies": sum(map(has_body, prompts, texts)) / count,
            }
        )
    facts["figures"] = {"prompts": len(prompts), "new_tokens": new_tokens, "by_temperature": figures}
    (out / "card.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(page(facts), encoding="utf-8")


class Endless(torch.nn.Module):
    """A module that may not end: its logit of the end-of-sequence is out of reach."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, **settings: Any) -> Any:
        found = self.module(**settings)
        found.logits[..., 0] = FORBIDDEN
        return found


def write(
    decoder: ouroboros.Decoder,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    temperature: float,
    seed: int,
    ends: bool,
    tell: Callable[[int, int, str], None],
) -> list[Record]:
    """The target's continuations, by the library; without ``ends`` its end-of-sequence is forbidden."""
    found = []
    for job in jobs_for(prompts, [temperature], 1, seed):
        result = decoder.generate(
            list(job.prompt),
            max_new_tokens=new_tokens,
            temperature=temperature,
            seed=job.seed,
            logit_bias={} if ends else {0: FORBIDDEN},
        )
        found.append(Record(job.prompt, result.token_ids, job.seed, temperature, new_tokens))
        tell(len(found), len(prompts), "")
    return found


@torch.inference_mode()
def among_first(draft: Any, records: Sequence[Record], count: int) -> float:
    """How often the target's token is among the draft's likeliest ``count``."""
    hits = total = 0
    for one in records:
        ids_1L = torch.tensor([[*one.prompt, *one.tokens]])
        logits_TV = draft(input_ids=ids_1L, use_cache=False).logits[0, len(one.prompt) - 1 : -1]
        hits += int((logits_TV.topk(count, dim=-1).indices == torch.tensor(one.tokens)[:, None]).sum())
        total += len(one.tokens)
    return ratio(hits, total)


def chain_tokens(agreed: Sequence[Sequence[bool]], records: Sequence[Record], gamma: int) -> float:
    """Tokens per target forward of chains of γ draft tokens."""
    forwards = sum(chain(row, gamma, one.budget) for row, one in zip(agreed, records, strict=True))
    return ratio(sum(len(one.tokens) for one in records), forwards)


def parses(prompt: str, text: str) -> bool:
    """Whether prompt and completion, up to the end of the function, are Python."""
    return parsed(prompt, text) is not None


def has_body(prompt: str, text: str) -> bool:
    """Whether they also give the prompt's last function more than its docstring."""
    tree = parsed(prompt, text)
    functions = [] if tree is None else [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return bool(functions) and len(functions[-1].body) > (ast.get_docstring(functions[-1]) is not None)


def parsed(prompt: str, text: str) -> ast.Module | None:
    lines = text.split("\n")
    end = next((i for i, line in enumerate(lines) if line and not line[0].isspace()), len(lines))
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(prompt + "\n".join(lines[:end]))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def page(facts: Mapping[str, Any]) -> str:
    """The model card."""
    target, draft, corpus, figures = (facts[name] for name in ("target", "draft", "corpus", "figures"))

    def both(label: str, say: Callable[[Mapping[str, Any]], str]) -> str:
        return f"| {label} | {say(target)} | {say(draft)} |"

    def shape(one: Mapping[str, Any]) -> str:
        return f"{one['hidden']} × {one['layers']} × {one['heads']}, {one['inner']}"

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
        "named takes them. Made by `python recipes/embedded_pair/make.py`, which documents how.",
        "",
        "| | `target/` | `draft/` |",
        "|---|---|---|",
        "| architecture | Llama, tied embeddings | the same |",
        both("hidden × layers × heads, inner", shape),
        both("parameters", lambda one: f"{one['parameters'] / 1e6:.1f} M"),
        both("weights in bf16", lambda one: f"{one['parameters'] * 2 / 1e6:.1f} MB"),
        both("loss on short functions set aside, nats a token", lambda one: f"{one['lessons']['loss']:.2f}"),
        f"| likeliest token is the target's, on those functions | | {draft['lessons']['greedy_agreement']:.0%} |",
        "",
        "One byte-level BPE tokenizer of 8,192 tokens, `<|endoftext|>` = 0 at the end of every document. Training",
        "saw 400 tokens and fewer: expect less sense beyond that. The target takes 2,048; the draft, which is lost",
        "there, says 384 in its config.json, so that of a longer text its end is read.",
        "",
        "## What it is for, and what not",
        "",
        "For demonstrations, tests, and measuring speed and acceptance. Not for writing code, and not for scores:",
        "what it writes looks like Python and is seldom correct, so nothing here is a score of task quality. It has",
        "had no safety training of any kind. Greedy output of models this small loops more than sampled output, which",
        "flatters every method that drafts from what was written before: the share of repeated 4-grams is given below.",
        "",
        "## Acceptance",
        "",
        f"On the target's own continuations of {figures['prompts']} HumanEval prompts ({figures['new_tokens']} tokens,",
        "end-of-sequence forbidden): how often the draft's first choice is the target's token, how often that token is",
        "among the draft's first three, how often the draws of the two agree under the noise that they share, the",
        "repeated 4-grams, and tokens per target forward of chains of γ draft tokens with shared noise.",
        "",
        "| | first choice | in the first three | shared noise | repeated 4-grams | γ = 2 / 3 / 5 / 10 |",
        "|---|---|---|---|---|---|",
    ]
    for row in figures["by_temperature"]:
        chains = " / ".join(f"{value:.2f}" for value in row["chains"].values())
        lines.append(
            f"| {_name(row)} | {row['first']:.3f} | {row['first_three']:.3f} | {row['agreement']:.3f} | "
            f"{row['repeated_4grams']:.0%} | {chains} |"
        )
    lines += [
        "",
        f"The same prompts with the end allowed (at most {MOST_TOKENS} tokens). *Parses*: prompt and completion, up to",
        "the end of the function, are Python; *with a body*: and the function has more than its docstring.",
        "",
        "| | ended by itself | tokens | parses | with a body | repeated 4-grams |",
        "|---|---|---|---|---|---|",
    ]
    for row in figures["by_temperature"]:
        lines.append(
            f"| {_name(row)} | {row['ended']:.0%} | {row['tokens']:.0f} | {row['parses']:.0%} | {row['bodies']:.0%} | "
            f"{row['repeated_4grams_ended']:.0%} |"
        )
    lines += ["", "## How it was made", "", *_made(facts), "", "## Training text and licences", ""]
    sets = ", ".join(corpus["evaluation"]) or "none"
    lines += [
        f"{corpus['functions']:,} short functions cut out of Python packages, and {corpus['school']:,} questions",
        "and answers of GSM8K's training part. What shares 13 consecutive words with a prompt or solution of the",
        f"evaluation sets ({sets}) was left out: {corpus['removed']} documents.",
        *facts.get("remarks", []),
        "The weights are distributed under the project's own licence, Apache-2.0.",
        "",
        "| source | licence | characters | left out |",
        "|---|---|---|---|",
    ]
    for row in corpus["sources"]:
        lines.append(f"| {row['source']} | {row['licence']} | {row['characters']:,} | {row['removed']} |")
    return "\n".join(lines) + "\n"


def _name(row: Mapping[str, Any]) -> str:
    return "greedy" if row["temperature"] == 0 else f"temperature {row['temperature']:g}"


def _made(facts: Mapping[str, Any]) -> list[str]:
    """The stages, one a line."""
    trained, text = facts["trained"], facts["text"]
    lines = []
    if facts["start"] is not None:
        lines.append(f"- It goes on from another pair: {facts['start']}.")
    if "target" in trained:
        one = trained["target"]
        tokens = facts["tokens"]["training"] / 1e6
        lines.append(f"- Target: {one['steps']:,} steps of {one['batch']} windows of {tokens:.1f} M tokens of source.")
    one = trained["lessons"]
    lines.append(
        f"- Lessons: the target learned heads of functions with their bodies, and questions with answers, an "
        f"end-of-sequence behind each: {one['steps']:,} steps of {one['batch']} (loss {one['loss']:.2f})."
    )
    for number, one in enumerate(facts.get("refine", []), 1):
        lines.append(
            f"- Refinement {number}: it answered {one['asked']:,} prompts of the corpus; of each prompt's answers the "
            f"likeliest that ends, parses and does not repeat itself was learned ({one['kept']:,}), and the tokens by "
            f"which {one['loops']:,} texts repeat themselves were made unlikely: {one['steps']:,} steps."
        )
    one = trained["draft"]
    lines.append(
        f"- Draft: {one['steps']:,} steps of {one['batch']} of {text['texts']:,} texts of the target "
        f"({text['tokens'] / 1e6:.2f} M tokens) with the target's distribution as the aim (loss {one['loss']:.3f})."
    )
    if "meet" in trained:
        one, now = trained["meet"], facts["target"]["lessons"]["loss"]
        lines.append(
            f"- Together: {one['steps']:,} steps of {one['batch']} of these texts, in which both learned to draw the "
            "same token from shared noise at temperature 0.8, the target held to what it was by a KL divergence and "
            f"kept from its loops ({one['loops']:,} texts). That moved it: its loss on the functions set aside, "
            f"{facts['before']['loss']:.2f} before, is {now:.2f}."
        )
    lines += facts.get("notes", [])
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in facts["seconds"].items())
    lines.append(f"- Seed {facts['seed']}, on {facts['device']}; seconds by stage: {seconds}.")
    return lines
