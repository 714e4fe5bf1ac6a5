"""How far a GGUF file as this library computes it is from the file's own numbers in float32, by transformers' forward.

    python -m benchmarks.gguf_agreement MODEL.gguf [--text FILE] [--prompts 20] [--tokens 64] [--out results/….json]

The reference is transformers' model of the family, whose weights are the file's, dequantised to float32. It writes no
text: it is given the library's greedy text and asked, token by token, what it would have written there. Where that is
another token, the audit's question is whether the two are near ties: how far apart their logits are in the reference.
Perplexity is of the first 50 kB of a text, in pieces of 512 tokens, each position with what is before it in its piece.
Memory: the reference takes four bytes a parameter.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import ouroboros
from benchmarks.real_prompts import load_prompts
from ouroboros.bench.tasks import load_task
from ouroboros.errors import InputError, OuroborosError
from ouroboros.models.base import CausalModel, ScoreRequest
from ouroboros.models.gguf import read_gguf
from ouroboros.tree import Origin, TokenTree

PIECE = 512  # tokens
ROWS = 64  # of one forward of the library
BYTES = 50_000  # of text for the perplexity
NEAR = 0.5  # nats between two tokens' logits that count as a near tie: the file's own rounding moves them further


def reference(path: Path) -> Any:
    """transformers' model with the file's numbers in float32.

    Raises:
        InputError: positions that the config of transformers is not told of.
    """
    checkpoint = read_gguf(path)
    if checkpoint.config.rope["rope_type"] != "default":
        raise InputError(
            f"{path.name!r} scales its positions ({checkpoint.config.rope['rope_type']}): not supported here"
        )
    raw = {key: value for key, value in checkpoint.raw.items() if value is not None}
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model(**raw), dtype=torch.float32)
    offset = 1.0 if checkpoint.config.output_norms else 0.0  # Gemma's gains are stored with it
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            numbers = checkpoint.weights.get(name)
            parameter.copy_(numbers - offset if "norm" in name else numbers)
    return module.eval()


def logits_of(model: CausalModel, tokens: list[int]) -> Tensor:
    """[tokens, V]: the library's logits behind each token."""
    slot, found = model.open(), []
    for start in range(0, len(tokens), ROWS):
        tree = TokenTree(tokens[start])
        for token in tokens[start + 1 : start + ROWS]:
            tree.add(len(tree) - 1, token, Origin.DRAFT)
        found.append(model.score([ScoreRequest(slot, tree)])[0])
        slot.commit(range(len(tree)))
    return torch.cat(found)


def greedy(decoder: ouroboros.Decoder, theirs: Any, prompt: list[int], count: int) -> list[dict[str, Any]]:
    """Each token of the library's greedy text against the reference's choice there."""
    written = list(decoder.generate(prompt, max_new_tokens=count, ignore_eos=True).token_ids)
    with torch.inference_mode():
        logits = theirs(torch.tensor([prompt + written]), logits_to_keep=len(written) + 1).logits[0, :-1].float()
    best = logits.argmax(-1)
    gaps = logits.gather(1, best[:, None])[:, 0] - logits.gather(1, torch.tensor(written)[:, None])[:, 0]
    return [
        {"token": t, "other": int(b), "gap": round(float(g), 4)} for t, b, g in zip(written, best, gaps, strict=True)
    ]


def surprise(model: CausalModel, theirs: Any, tokens: list[int]) -> tuple[float, float, float]:
    """Mean nats a token: the library's, the reference's; and the mean divergence KL(reference ‖ library)."""
    mine, other, divergence = 0.0, 0.0, 0.0
    count = 0
    for start in range(0, len(tokens), PIECE):
        piece = tokens[start : start + PIECE]
        if len(piece) < 2:
            continue
        own = logits_of(model, piece[:-1])
        with torch.inference_mode():
            given = theirs(torch.tensor([piece])).logits[0, :-1].float().log_softmax(-1)
        own, target = own.float().log_softmax(-1), torch.tensor(piece[1:])[:, None]
        mine -= float(own.gather(1, target).double().sum())
        other -= float(given.gather(1, target).double().sum())
        divergence += float((given.exp() * (given - own)).double().sum())
        count += len(piece) - 1
    return mine / count, other / count, divergence / count


def sample_text() -> str:
    """Text of all kinds, as long as it is needed: the prompts of the package's tasks."""
    tasks = ("summarization", "rag", "multi_turn", "humaneval", "translation", "math_reasoning")
    columns = [[str(item.prompt) for item in load_task(task)] for task in tasks]
    mixed = [text for row in zip_longest(*columns) for text in row if text is not None]
    return "\n\n".join(mixed)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, help="for the perplexity; else prompts of the package's tasks")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    decoder = ouroboros.load(given.model, method="autoregressive", dtype=given.dtype)
    assert decoder.tokenizer is not None
    theirs = reference(given.model)
    steps: list[dict[str, Any]] = []
    begun = time.perf_counter()
    for number, prompt in enumerate(prompts(decoder, given.prompts)):
        steps += greedy(decoder, theirs, prompt, given.tokens)
        print(f"prompt {number + 1}: {sum(s['gap'] == 0 for s in steps)} of {len(steps)} agree", file=sys.stderr)
    differ = [step for step in steps if step["gap"] > 0]
    whole = given.text.read_bytes() if given.text else sample_text().encode()
    text = whole[:BYTES].decode("utf-8", errors="ignore")
    mine, other, divergence = surprise(decoder.target, theirs, decoder.tokenizer.encode(text))
    info = decoder.target.info
    found = {
        "model": given.model.name,
        "stored": info.stored,
        "dtype": info.dtype,
        "engine": info.engine,
        "tokens": len(steps),
        "agree": round(1 - len(differ) / len(steps), 5),
        "differences": [step["gap"] for step in differ],
        "near_ties": sum(step["gap"] <= NEAR for step in differ),
        "text_bytes": len(text.encode()),
        "perplexity": round(math.exp(mine), 5),
        "perplexity_float32": round(math.exp(other), 5),
        "divergence_nats": round(divergence, 7),
        "seconds": round(time.perf_counter() - begun),
    }
    print(json.dumps(found, indent=1))
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def prompts(decoder: ouroboros.Decoder, count: int) -> list[list[int]]:
    """Token ids of real prompts: as chats where the file has a template."""
    words = decoder.tokenizer
    assert words is not None
    found = [str(one.prompt) for name in ("reporting", "tuning") for one in load_prompts(name)][:count]
    if words.has_chat_template:
        return [words.apply_chat_template([{"role": "user", "content": prompt}]) for prompt in found]
    return [words.encode(prompt) for prompt in found]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OuroborosError as error:
        sys.exit(f"error: {error}")
