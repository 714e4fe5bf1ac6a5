"""What running requests wait while a long prompt is read: time from token to token without and with one.

    python -m benchmarks.long_prompt --target T --draft D        # also a directory or hub id

Some requests of short prompts run all the time (a closed loop). After a while a prompt of --prompt-tokens tokens comes;
what the others' tokens took until its first token is held against what they took before it came. Tokens that come
together share the time. Results: benchmarks/results/long_prompt.json.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import ouroboros
from benchmarks.gguf_speed import RESULTS, processor
from ouroboros.stats import quantile

SHARES = (0.5, 0.95, 0.99)
Gap = tuple[float, float]  # when a token came, and what it took


def follow(engine: ouroboros.Engine, prompt: list[int], new_tokens: int, gaps: list[Gap], end: threading.Event) -> None:
    """One of the closed loop's places: request after request, until the end."""
    number = 0
    while not end.is_set():
        last: float | None = None
        ticket = engine.submit([*prompt, 1000 + number % 500], max_new_tokens=new_tokens, ignore_eos=True)
        for chunk in ticket:
            now = time.perf_counter()
            if last is not None and chunk.token_ids:
                gaps.extend((now, (now - last) / len(chunk.token_ids)) for _ in chunk.token_ids)
            last = now
            if end.is_set():
                ticket.cancel()
        number += 1


def measure(args: argparse.Namespace) -> dict[str, Any]:
    decoder = ouroboros.load(args.target, args.draft, method=args.method, threads=args.threads)
    text = decoder.tokenizer.encode(Path(__file__).read_text()) if decoder.tokenizer else list(range(200))
    gaps: list[Gap] = []
    end = threading.Event()
    with ouroboros.Engine(decoder, max_requests=args.others + 1) as engine:
        places = [
            threading.Thread(target=follow, args=(engine, text[40 * i : 40 * i + 60], args.new_tokens, gaps, end))
            for i in range(args.others)
        ]
        for place in places:
            place.start()
        time.sleep(args.seconds / 3)  # what is learned at first counts for neither side
        began = time.perf_counter()
        time.sleep(args.seconds)
        came = time.perf_counter()
        long = (text * (args.prompt_tokens // len(text) + 1))[: args.prompt_tokens]
        first = next(iter(engine.submit(long, max_new_tokens=8, ignore_eos=True)))
        read = time.perf_counter()
        end.set()
        for place in places:
            place.join()
    assert first.token_ids
    sides = {"without": [t for at, t in gaps if began <= at < came], "with": [t for at, t in gaps if came <= at < read]}
    told = {name: {"tokens": len(ts), **{f"p{100 * s:g}_ms": round(1e3 * quantile(ts, s), 1) for s in SHARES}}
            for name, ts in sides.items()}  # fmt: skip
    ratio = {f"p{100 * s:g}": round(quantile(sides["with"], s) / quantile(sides["without"], s), 2) for s in SHARES}
    return {"target": Path(args.target).name, "draft": args.draft and Path(args.draft).name, "method": args.method,
            "processor": processor(), "others": args.others, "prompt_tokens": args.prompt_tokens,
            "first_token_seconds": round(read - came, 2), **told, "ratio": ratio}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft")
    parser.add_argument("--method", default="ouroboros")
    parser.add_argument("--others", type=int, default=2, help="requests that run all the time")
    parser.add_argument("--prompt-tokens", type=int, default=4000)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=30.0, help="before the long prompt comes")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=RESULTS / "long_prompt.json")
    args = parser.parse_args()
    found = measure(args)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
