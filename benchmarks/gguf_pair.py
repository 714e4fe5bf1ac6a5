"""A pair of GGUF files end to end: this library and llama.cpp's server in its drafting modes, on the same files.

    python -m benchmarks.gguf_pair --target T.gguf --draft D.gguf

Chat prompts by the file's own template, greedy, to the end of the text or --new-tokens; all sides take each prompt by
turns, in an order that rotates. This library runs with its defaults and an empty pool for every prompt; what it learns
of costs and acceptance stays. llama.cpp's server (llama-server on the PATH, or --server) runs once for each mode of
--modes: ``plain``, ``draft-simple`` (the draft model), ``ngram-simple``, ``ngram-mod``, or several joined by ``+``; its
prompt cache is off. Milliseconds a token are of decoding, as each side counts it; this library's have the draft model's
reading in them. ``whole`` has the prompt, too. The raw file is written after each prompt. Results:
benchmarks/results/gguf_pair-NAME.json.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.gguf_speed import RESULTS, processor
from benchmarks.real_prompts import load_prompts

MODES = ("plain", "ngram-simple", "ngram-mod", "draft-simple")
PLAIN, OWN = "ouroboros plain", "ouroboros"
Side = dict[str, Any]  # of one request: tokens, decode, whole (seconds), token_ids


def ask_server(port: int, prompt: Sequence[int], new_tokens: int) -> Side:
    asked = {"prompt": list(prompt), "n_predict": new_tokens, "temperature": 0.0, "cache_prompt": False,
             "return_tokens": True, "seed": 0}  # fmt: skip
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/completion", json.dumps(asked), {"Content-Type": "application/json"})
    told = json.loads(connection.getresponse().read())
    connection.close()
    timings = told["timings"]
    return {"tokens": timings["predicted_n"], "decode": timings["predicted_ms"] / 1e3,
            "whole": time.perf_counter() - began, "token_ids": told.get("tokens", [])}  # fmt: skip


def ask_ours(decoder: Any, prompt: Sequence[int], new_tokens: int) -> Side:
    began = time.perf_counter()
    result = decoder.generate(list(prompt), max_new_tokens=new_tokens)
    whole, stats = time.perf_counter() - began, result.stats
    return {"tokens": stats.new_tokens, "decode": stats.decode_seconds + stats.draft_prefill_seconds, "whole": whole,
            "token_ids": list(result.token_ids), "target_forwards": stats.target_forwards,
            "draft_forwards": stats.draft_forwards}  # fmt: skip


def measure(args: argparse.Namespace) -> dict[str, Any]:
    os.environ["XDG_CACHE_HOME"] = args.cache  # nothing measured before; kernels are compiled now
    import ouroboros
    from ouroboros.bench.services import LlamaServer
    from ouroboros.prompts import encode

    began = time.perf_counter()
    own = ouroboros.load(args.target, args.draft, pool=False, threads=args.threads)
    load_seconds = time.perf_counter() - began
    plain = ouroboros.load(own.target, None, own.tokenizer, "autoregressive", pool=False)
    with ExitStack() as stack:
        ports = {}
        for mode in args.modes:
            kinds = [kind for kind in mode.split("+") if kind != "plain"]
            extra = ["--spec-type", ",".join(kinds)] if kinds else []
            extra += ["-md", args.draft] if "draft-simple" in kinds else []
            server = LlamaServer(args.target, 1, 4096, args.threads, args.server, extra)
            ports[f"llama.cpp {mode}"] = stack.enter_context(server).port
        sides = [PLAIN, OWN, *ports]
        cases: list[dict[str, Any]] = []
        raw = {"target": Path(args.target).name, "draft": Path(args.draft).name, "threads": args.threads,
               "processor": processor(), "load_seconds": round(load_seconds, 2), "new_tokens": args.new_tokens,
               "draft_dtype": own.draft.info.dtype if own.draft else None, "prompts": args.prompts,
               "cases": cases}  # fmt: skip
        for decoder in (plain, ouroboros.load(own.target, own.draft, own.tokenizer, "speculative", pool=False)):
            decoder.generate("The sea was calm that morning", max_new_tokens=8, ignore_eos=True)
        for port in ports.values():
            ask_server(port, [1, 2, 3], 4)
        for place, prompt in enumerate(load_prompts(args.prompts, args.limit)):
            info = own.target.info
            ids = encode(prompt.ask(True), own.tokenizer, info.vocab_size, info.max_positions)
            runs: dict[str, list[Side]] = {side: [] for side in sides}
            for repeat in range(args.repeats):
                first = (place + repeat) % len(sides)
                for side in sides[first:] + sides[:first]:
                    time.sleep(args.pause)
                    if side in ports:
                        found = ask_server(ports[side], ids, args.new_tokens)
                    else:
                        found = ask_ours(own if side == OWN else plain, ids, args.new_tokens)
                    runs[side].append(found)
            cases.append(case(prompt.name, len(ids), runs))
            args.out.write_text(json.dumps(raw, indent=1) + "\n")
            print(
                prompt.name, {side: one["ms"] for side, one in cases[-1]["sides"].items()}, file=sys.stderr, flush=True
            )
    return raw


def case(name: str, prompt_tokens: int, runs: dict[str, list[Side]]) -> dict[str, Any]:
    """Of a prompt: what each side took, and where its text parts from this library's plain decoding."""
    plain = runs[PLAIN][0]["token_ids"]
    sides = {}
    for side, found in runs.items():
        ids = found[0]["token_ids"]
        parts = next((i for i, (a, b) in enumerate(zip(plain, ids, strict=False)) if a != b), None)
        each = [1e3 * one["decode"] / max(1, one["tokens"]) for one in found]
        sides[side] = {"ms": round(statistics.median(each), 2), "all_ms": [round(ms, 2) for ms in each],
                       "whole_ms": round(statistics.median(1e3 * o["whole"] / max(1, o["tokens"]) for o in found), 2),
                       "tokens": found[0]["tokens"], "parts_at": parts}  # fmt: skip
        sides[side] |= {key: found[0][key] for key in ("target_forwards", "draft_forwards") if key in found[0]}
    return {"prompt": name, "prompt_tokens": prompt_tokens, "sides": sides}


def report(raw: dict[str, Any]) -> str:
    """Milliseconds a token of each side on each prompt, and this library's speed over them."""
    sides = list(raw["cases"][0]["sides"])
    lines = ["| ms a token | " + " | ".join(sides) + " |", "|---" * (len(sides) + 1) + "|"]
    for one in raw["cases"]:
        cells = " | ".join(f"{one['sides'][side]['ms']:.1f}" for side in sides)
        lines.append(f"| {one['prompt']} ({one['prompt_tokens']} + {one['sides'][PLAIN]['tokens']}) | {cells} |")
    for key, words in (("ms", "decoding"), ("whole_ms", "with the prompt")):
        ratios = {s: [c["sides"][s][key] / c["sides"][OWN][key] for c in raw["cases"]] for s in sides}
        means = " | ".join(
            f"{math.exp(statistics.fmean(map(math.log, r))):.2f} ({min(r):.2f})" for r in ratios.values()
        )
        lines.append(f"| Ouroboros over it, {words}: geometric mean (least) | {means} |")
        best = [min(c["sides"][s][key] for s in sides if s.startswith("llama")) / c["sides"][OWN][key]
                for c in raw["cases"] if len(sides) > 2]  # fmt: skip
        if best:
            mean = math.exp(statistics.fmean(map(math.log, best)))
            lines.append(f"| over llama.cpp's best mode on each prompt, {words} | {mean:.2f} ({min(best):.2f}) |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--target", metavar="FILE", help="a GGUF file")
    parser.add_argument("--draft", metavar="FILE", help="a GGUF file")
    parser.add_argument("--modes", default=",".join(MODES), help="of llama.cpp's server; empty for none")
    parser.add_argument("--server", default="llama-server", metavar="PATH")
    parser.add_argument("--prompts", default="reporting")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pause", type=float, default=0.1, help="seconds before each request")
    parser.add_argument("--out", type=Path, help="where the results go")
    parser.add_argument("--table", type=Path, metavar="RAW", help="measure nothing, print this file's table")
    args = parser.parse_args()
    if args.table:
        print(report(json.loads(args.table.read_text())))
        return
    if not (args.target and args.draft):
        parser.error("--target and --draft are needed")
    args.modes = [mode for mode in args.modes.split(",") if mode]
    args.out = args.out or RESULTS / f"gguf_pair-{Path(args.target).stem}.json"
    with tempfile.TemporaryDirectory(prefix="gguf-pair-") as args.cache:
        print(report(measure(args)))


if __name__ == "__main__":
    main()
