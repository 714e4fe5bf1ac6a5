"""What a look-up and an insert cost with a million phrases in the pool.

    python benchmarks/pool_cost.py

Text is random with a Zipf-like spread over 32,000 token ids, so that some keys are crowded and most are rare. Medians
and 99th percentiles over single calls, raw numbers in benchmarks/results/pool_cost.json, and printed.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from rich.progress import Progress

from ouroboros.phrases.pool import PhrasePool
from ouroboros.tree import Origin

RAW = Path(__file__).parent / "results" / "pool_cost.json"
PHRASES = 1_000_000
VOCABULARY = 32_000


def main() -> None:
    rng = random.Random(0)
    weights = [1 / (rank + 10) for rank in range(VOCABULARY)]
    text = rng.choices(range(VOCABULARY), weights, k=1_200_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pool = PhrasePool(max_keys=10 * PHRASES)
    position = 3

    def insert() -> None:
        nonlocal position
        pool.insert(text[position - 3 : position], text[position : position + 10], Origin.VERIFIED)
        position += 1

    def lookup() -> None:
        start = rng.randrange(3, position)
        pool.lookup(text[start - 3 : start], 4, 8)

    def miss() -> None:
        pool.lookup(rng.choices(range(VOCABULARY), k=3), 4, 8)

    results: dict[str, object] = {}
    with Progress() as progress:
        bar = progress.add_task("phrases", total=PHRASES)
        for size in (1_000, PHRASES):
            while len(pool) < size:
                insert()
                if position % 1000 == 0:
                    progress.update(bar, completed=len(pool))
            results[f"{size:,} phrases"] = {
                "insert (three keys)": measure(insert),
                "look-up of a known context": measure(lookup),
                "look-up of a random context": measure(miss),
            }
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    results["keys"] = pool.keys
    results["bytes per phrase"] = round(memory * 1024 / len(pool))
    RAW.parent.mkdir(exist_ok=True)
    RAW.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


def measure(call: Callable[[], None], calls: int = 5000) -> dict[str, float]:
    """Microseconds a call."""
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        times.append((time.perf_counter() - began) * 1e6)
    times.sort()
    return {"median_us": round(statistics.median(times), 1), "p99_us": round(times[int(0.99 * calls)], 1)}


if __name__ == "__main__":
    main()
