"""What a draft in another vocabulary is worth: copies of the embedded draft, renumbered and with fewer merges.

    PYTHONPATH=. python benchmarks/other_tokenizers.py

24 HumanEval prompts, 96 new tokens each, end-of-sequence ignored, fp32, default options, cold pools; coverage is
that of the probe text, the limit of ``load`` is lifted here. Prints a table in Markdown.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from ouroboros import Decoder, load
from ouroboros.models.base import CausalModel
from ouroboros.models.loading import load_directory
from ouroboros.models.translated import TranslatedModel
from ouroboros.text import Tokenizer
from ouroboros.translation import translate
from tests.vocabularies import DRAFT, EMBEDDED, fewer_merges, renumbered

PROMPTS = Path(__file__).parent / "data" / "humaneval.jsonl"


def main() -> None:
    prompts = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()[:24]]
    target = load_directory(EMBEDDED / "target", "float32", torch.device("cpu"))
    words = Tokenizer.wrap(EMBEDDED / "target")
    drafts: dict[str, tuple[CausalModel | None, str]] = {"none (lookahead)": (None, "")}
    with tempfile.TemporaryDirectory() as scratch:
        paths = {"the embedded draft": DRAFT, "renumbered": renumbered(Path(scratch) / "renumbered")}
        for size in (4096, 2048, 1024, 512):
            paths[f"{size:,} of 8,192 tokens"] = fewer_merges(Path(scratch) / str(size), size)
        for name, path in paths.items():
            model = load_directory(path, "float32", torch.device("cpu"))
            if path == DRAFT:
                drafts[name] = model, ""
                continue
            found = translate(words, Tokenizer.wrap(path), target.info.vocab_size, frozenset({0}), least=0)
            translated = TranslatedModel(model, found.spellings, found.partners, found.prefix)
            drafts[name] = translated, f"{found.coverage:.0%}"
    print("| draft | coverage | speculative, greedy | temperature 1 | ouroboros, greedy | temperature 1 |")
    print("|---|---|---|---|---|---|")
    for name, (draft, coverage) in drafts.items():
        methods = ["speculative", "ouroboros"] if draft else ["lookahead"]
        cells = [measure(target, draft, words, method, t, prompts) for method in methods for t in (0.0, 1.0)]
        print("|", " | ".join([name, coverage, *[""] * (4 - len(cells)), *cells]), "|", flush=True)


def measure(
    target: CausalModel, draft: CausalModel | None, words: Tokenizer, method: str, heat: float, prompts: list[str]
) -> str:
    """Tokens per target forward, and draft forwards per token in brackets."""
    decoder: Decoder = load(target, draft, words, method, pool=False)
    settings = {"max_new_tokens": 96, "temperature": heat, "ignore_eos": True}
    stats = [decoder.generate(prompt, seed=i, **settings).stats for i, prompt in enumerate(prompts)]
    new = sum(s.new_tokens for s in stats)
    draft_forwards = sum(s.draft_forwards for s in stats) / new
    return f"{new / sum(s.target_forwards for s in stats):.2f}" + (f" ({draft_forwards:.2f})" if draft else "")


if __name__ == "__main__":
    main()
