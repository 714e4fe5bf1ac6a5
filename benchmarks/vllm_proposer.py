"""OuroborosProposer beside vLLM's own drafting: processor seconds, tokens and acceptance, cold and warm.

    python benchmarks/vllm_proposer.py MODEL [--method plain --method ngram --method ouroboros] [--out FILE.json]

in an environment with vLLM (docs/vllm.md). Prompts come one after the other (``--together``: all at once), greedily and
in float32: first ten requests for code that repeats code (functions of Python's standard library), then the first ten
chat prompts of real_prompts.py. The first pass is cold, the second one asks the same again: a memory then holds the
outputs. Each method runs in a process of its own; with ``plain`` among them its tokens are compared.
"""

from __future__ import annotations

import argparse
import colorsys
import difflib
import fnmatch
import heapq
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
METHODS = ("plain", "ngram", "suffix", "ouroboros")
FUNCTIONS = (
    textwrap.shorten, textwrap.indent, fnmatch.filter, statistics.quantiles, textwrap.dedent, statistics.mode,
    heapq.nsmallest, difflib.get_close_matches, colorsys.rgb_to_hls, difflib.context_diff,
)  # fmt: skip
ASK = "Add a type annotation to every parameter of this function and return the whole function, otherwise unchanged."
SPECULATIVE: dict[str, dict[str, object]] = {
    "ngram": {"method": "ngram", "prompt_lookup_max": 5, "prompt_lookup_min": 2},
    "suffix": {"method": "suffix"},
    "ouroboros": {"method": "custom_class", "model": "ouroboros.integrations.vllm.OuroborosProposer"},
}


def prompts() -> dict[str, list[str]]:
    from benchmarks.real_prompts import load_prompts

    code = [f"{ASK}\n\n```python\n{inspect.getsource(one)}```" for one in FUNCTIONS]
    return {"code": code, "chat": [str(one.prompt) for one in load_prompts("reporting", 10)]}


def measure(options: argparse.Namespace) -> None:
    """One method, in this process; what is known is written after each run."""
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    settings: dict[str, Any] = {}
    method = options.method[0]
    if method != "plain":
        settings["speculative_config"] = {**SPECULATIVE[method], "num_speculative_tokens": options.draft_tokens}
    if method == "ouroboros" and options.options:
        settings["additional_config"] = {"ouroboros": json.loads(options.options)}
    llm = LLM(options.model, dtype="float32", max_model_len=2048, enforce_eager=True, disable_log_stats=False,
              enable_prefix_caching=False, **settings)  # fmt: skip
    words = AutoTokenizer.from_pretrained(options.model)

    def ids(prompt: str) -> dict[str, list[int]]:
        text = words.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        return {"prompt_token_ids": words.encode(text)}

    sampling = SamplingParams(temperature=0, max_tokens=options.new_tokens)
    llm.generate([ids("Hello")], SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
    found: dict[str, Any] = {"method": method, "runs": []}
    asked = {kind: [ids(one) for one in texts[: options.prompts]] for kind, texts in prompts().items()}
    for state in ("cold", "warm"):
        for kind, some in asked.items():
            before, began, used = drafting(llm), time.perf_counter(), time.process_time()
            groups = [some] if options.together else [[one] for one in some]
            outputs = [out for group in groups for out in llm.generate(group, sampling, use_tqdm=False)]
            run = {
                "state": state,
                "prompts": kind,
                "wall_seconds": round(time.perf_counter() - began, 3),
                "processor_seconds": round(time.process_time() - used, 3),
                "tokens": [list(out.outputs[0].token_ids) for out in outputs],
            }
            run |= {name: value - before[name] for name, value in drafting(llm).items()}
            found["runs"].append(run)
            options.out.write_text(json.dumps(found))


def drafting(llm: Any) -> dict[str, int]:
    """vLLM's counters."""
    names = {"num_drafts": "drafts", "num_draft_tokens": "drafted", "num_accepted_tokens": "accepted"}
    counts = dict.fromkeys(names.values(), 0)
    for metric in llm.get_metrics():
        short = names.get(metric.name.removeprefix("vllm:spec_decode_"))
        if short is not None:
            counts[short] += int(metric.value)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory in Hugging Face layout")
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--draft-tokens", type=int, default=8, help="num_speculative_tokens")
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--prompts", type=int, default=10, help="of each kind, at most")
    parser.add_argument("--together", action="store_true", help="all prompts of a kind at once")
    parser.add_argument("--options", help="the proposer's, as JSON")
    parser.add_argument("--out", type=Path, help="a JSON file for the raw figures")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        measure(options)
        return
    results = []
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    for method in options.method or ["plain", "ngram", "ouroboros"]:
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "out.json"
            command = [sys.executable, __file__, options.model, "--method", method, "--alone", "--out", str(out)]
            for name in ("draft_tokens", "new_tokens", "prompts", "options"):
                if getattr(options, name) is not None:
                    command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
            subprocess.run([*command, "--together"] if options.together else command, check=True)
            results.append(json.loads(out.read_text()))
        show(results[-1], results[0])
    if options.out is not None:
        settings = {"draft_tokens": options.draft_tokens, "new_tokens": options.new_tokens}
        settings |= {"together": options.together, "options": options.options, "model": Path(options.model).name}
        for one in results:
            for run in one["runs"]:
                run["tokens"] = sum(map(len, run["tokens"]))
        options.out.write_text(json.dumps({"settings": settings, "results": results}, indent=1) + "\n")


def show(one: dict[str, Any], first: dict[str, Any]) -> None:
    for run, plain in zip(one["runs"], first["runs"], strict=True):
        run["same_texts"] = sum(a == b for a, b in zip(run["tokens"], plain["tokens"], strict=True))
        run["texts"] = len(run["tokens"])
        count = sum(map(len, run["tokens"]))
        print(
            f"{one['method']:10} {run['state']} {run['prompts']}: {count} tokens, {run['processor_seconds']:.1f}"
            f" processor seconds, {run['wall_seconds']:.1f} by the clock, {run['accepted']} of {run['drafted']} drafted"
            f" tokens accepted; {run['same_texts']} of {run['texts']} texts as {first['method']}", flush=True
        )  # fmt: skip


if __name__ == "__main__":
    main()
