"""Memory of a long context: the embedded target grown to 0.35 B parameters, 8,192 tokens prefilled, some decoded.

    python benchmarks/long_context.py [--tokens 8192 --target 0.35b --dtype bfloat16]

Peak resident memory above that of the imports, against weights plus keys and values. Positions beyond the embedded
model's 2,048 are allowed for this measurement: the text is random, and nothing is read from it. Writes
benchmarks/results/long_context.json.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import tempfile
import time
from pathlib import Path

import torch
import transformers  # noqa: F401  # a part of the imports, not of what is measured

import ouroboros
from ouroboros.control.machine import machine
from ouroboros.control.profile import describe
from ouroboros.models.grow import load_grown
from ouroboros.models.quantised import QUANTISED, weight_bytes
from ouroboros.pairing import EMBEDDED

RAW = Path(__file__).parent / "results" / "long_context.json"


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--target", default="0.35b")
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    ouroboros.load(method="lookahead").generate("def f(", max_new_tokens=4)  # all that is imported late
    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "target"
        shutil.copytree(EMBEDDED / "target", copy)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "max_position_embeddings": arguments.tokens + 512}))
        model = load_grown(copy, arguments.target, dtype=arguments.dtype, device="cpu")
        loaded = peak()
        decoder = ouroboros.load(model, tokenizer=copy, method="lookahead", pool=False)
        source = random.Random(0)
        prompt = [source.randrange(1, 8000) for _ in range(arguments.tokens)]
        began = time.perf_counter()
        result = decoder.generate(prompt, max_new_tokens=32, ignore_eos=True)
        seconds = time.perf_counter() - began
    shape = model.config
    weights = weight_bytes(shape.shapes(), arguments.dtype)
    size = 2 if arguments.dtype in QUANTISED else getattr(torch, arguments.dtype).itemsize  # of the cache
    cache = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * size * (len(prompt) + 32)
    used = peak() - before
    found = {
        "model": f"{describe(model.info)}; {model.info.grown}",
        "machine": machine("cpu"),
        "version": ouroboros.__version__,
        "tokens": len(prompt),
        "weights_bytes": weights,
        "cache_bytes": cache,
        "peak_bytes_above_imports": used,
        "peak_after_loading_bytes": loaded - before,
        "ratio": used / (weights + cache),
        "loading_ratio": (loaded - before) / weights,
        "prefill_tokens_per_second": len(prompt) / result.stats.prefill_seconds,
        "seconds": seconds,
    }
    print(json.dumps(found, indent=1))
    RAW.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
