"""What 1, 10 and 1,000 GPUs would serve: simulated, from a published pair's shapes and traces of arrivals.

    python -m benchmarks.scaling --out benchmarks/results/scaling.json --plot benchmarks/plots/scaling.svg
    python -m benchmarks.scaling --table benchmarks/results/scaling.json                      # from the root

Three parts, each from the one before: one GPU with 1 to 128 requests at once, by the real scheduler in virtual time
(virtual_engine.py); memories that replicas have each for itself or exchange; and many GPUs, each as fast as that one
(fleet.py), with policies of routing. Nothing here was measured on a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console

import ouroboros
from benchmarks.fleet import POLICIES, Curve, Served, Traffic, simulate
from benchmarks.virtual_engine import CARDS, YI_34B, Virtual, asks, decoder_of, serve
from ouroboros.bench.markdown import table
from ouroboros.errors import OuroborosError
from ouroboros.phrases.memory import Memory
from ouroboros.serving.caches import CacheStore
from ouroboros.stats import quantile

PLAIN, FIXED, SUBJECT = "autoregressive", "speculative-5", "ouroboros"
METHODS = (PLAIN, FIXED, SUBJECT)
AT_ONCE = (1, 4, 16, 64, 128)
BEFORE = 1000  # positions that each request has in its cache beside its own
REPLICAS = (1, 4, 16)
REQUESTS, KINDS, EVERY = 64, 16, 16  # of the memories' part: requests, different prompts, requests between exchanges
BOUNDS = 30_000, 20_000, 200_000  # of a tenant's memory (server/tenants.py)
FIRST, TOKEN = 2.0, 0.06  # seconds at 95 % that a fleet must keep: to the first token, for each token
SECONDS = 150.0  # of a fleet's traffic


def one_gpu(pair: ouroboros.Decoder, card: str, label: str, at_once: int) -> dict[str, Any]:
    """A closed loop of so many requests, whose prompts are in the caches; counted from when all of them write until the
    last one begins."""
    decoder, clock = decoder_of(pair, CARDS[card], label, before=BEFORE)
    caches = CacheStore()
    serve(decoder, clock, [replace(ask, tokens=1) for ask in asks(KINDS, KINDS)], 1, caches, cold=True)
    runs = serve(decoder, clock, list(asks(max(12, 2 * at_once), KINDS)), at_once, caches, cold=True)
    begun = sorted(run.steps[0][0] for run in runs)
    since, until = begun[at_once - 1], begun[-1]
    steps = [(at, tokens) for run in runs for at, tokens in run.steps if since < at <= until]
    times = [(run.steps[-1][0] - run.steps[0][0]) / max(1, run.ask.tokens - run.steps[0][1]) for run in runs]
    assert isinstance(decoder.target, Virtual)
    return {
        "card": card,
        "method": label,
        "at_once": at_once,
        "tokens_per_second": sum(tokens for _, tokens in steps) / (until - since),
        "token_p95": quantile(times, 0.95),
        "rows_per_forward": sum(decoder.target.rows) / len(decoder.target.rows),
        "tokens_per_step": sum(tokens for _, tokens in steps) / len(steps),
    }


def memories(pair: ouroboros.Decoder, card: str, replicas: int, exchanged: bool) -> dict[str, Any]:
    """One tenant's requests, dealt to the replicas in turn; the second half is counted."""
    source = Random(1)
    common = list(asks(KINDS, KINDS))
    kinds = source.choices(range(KINDS), [1 / (1 + i) for i in range(KINDS)], k=REQUESTS)
    own = [Memory.over(None, *BOUNDS) for _ in range(replicas)]
    decoders = [decoder_of(pair, CARDS[card], SUBJECT, memory, BEFORE) for memory in own]
    tokens, seconds, steps = 0, 0.0, 0
    for i, kind in enumerate(kinds):
        decoder, clock = decoders[i % replicas]
        before = clock.seconds
        ask = common[kind]
        (run,) = serve(decoder, clock, [replace(ask, tokens=48, temperature=0.8, seed=i)], 1)
        if i >= REQUESTS // 2:
            tokens += ask_tokens(run.steps)
            steps += len(run.steps)
            seconds += clock.seconds - before
        if exchanged and replicas > 1 and i % EVERY == EVERY - 1:
            for memory in own:
                layer = Memory.over(None, *BOUNDS)
                for other in own:
                    if other is not memory:
                        layer.take_in(other)
                memory.put_over(layer)
    return {
        "card": card,
        "replicas": replicas,
        "exchanged": exchanged,
        "tokens_per_second": tokens / seconds,
        "tokens_per_step": tokens / steps,
    }


def ask_tokens(steps: Sequence[tuple[float, int]]) -> int:
    return sum(tokens for _, tokens in steps)


def curve_of(rows: Sequence[dict[str, Any]], card: str, method: str) -> Curve:
    rates = {row["at_once"]: row["tokens_per_second"] for row in rows if (row["card"], row["method"]) == (card, method)}
    return Curve(rates, 2 * YI_34B.parameters / CARDS[card].arithmetic)


def most_served(curve: Curve, gpus: int, policy: str, bursty: bool) -> dict[str, Any]:
    """The highest rate of requests that keeps the bounds."""
    low, high, best = 0.0, 16.0, None
    for _ in range(7):
        rate = (low + high) / 2
        served = simulate(curve, gpus, rate, SECONDS, Traffic(bursty=bursty), POLICIES[policy]())
        if _keeps(served):
            low, best = rate, served
        else:
            high = rate
    return {"gpus": gpus, "policy": policy, "bursty": bursty, "rate": low, **({} if best is None else asdict(best))}


def _keeps(served: Served) -> bool:
    return served.first[1] <= FIRST and served.token[1] <= TOKEN


def fleets(rows: Sequence[dict[str, Any]], card: str, tell: Console) -> list[dict[str, Any]]:
    found = []
    for method in METHODS:
        curve = curve_of(rows, card, method)
        for bursty in (False, True):
            for gpus, policies in ((1, ("by prefix",)), (10, POLICIES)):
                for policy in policies:
                    row = {"card": card, "method": method, **most_served(curve, gpus, policy, bursty)}
                    found.append(row)
                    tell.print(f"{method}, {gpus} GPUs, {policy}: {row['rate']:.2f} requests a second and GPU")
        rate = next(row["rate"] for row in reversed(found) if row["policy"] == "by prefix" and not row["bursty"])
        for gpus, seconds in ((100, 120.0), (1000, 60.0)):  # as many requests for each as ten serve
            served = simulate(curve, gpus, rate, seconds, Traffic(), POLICIES["by prefix"]())
            row = {"card": card, "method": method, "gpus": gpus, "policy": "by prefix", "bursty": False, "rate": rate}
            found.append({**row, **asdict(served)})
            tell.print(f"{method}, {gpus} GPUs: {served}")
    return found


def report(raw: dict[str, Any]) -> str:
    """Markdown."""
    parts = []
    for card in dict.fromkeys(row["card"] for row in raw["one"]):
        rows = [row for row in raw["one"] if row["card"] == card]
        plain = {row["at_once"]: row["tokens_per_second"] for row in rows if row["method"] == PLAIN}
        lines = [
            [
                str(n),
                *(
                    f"{row['tokens_per_second']:.0f} ({row['tokens_per_second'] / plain[n]:.2f}), "
                    f"{row['rows_per_forward']:.0f}"
                    for method in METHODS
                    for row in rows
                    if (row["method"], row["at_once"]) == (method, n)
                ),
            ]
            for n in plain
        ]
        told = f"{CARDS[card].name}, simulated: tokens per second (of plain decoding), rows per forward"
        parts.append(f"{told}\n\n{table(['at once', *METHODS], lines)}")
    lines = [
        [
            str(row["replicas"]),
            "exchanged" if row["exchanged"] else "each its own",
            f"{row['tokens_per_second']:.1f}",
            f"{row['tokens_per_step']:.2f}",
        ]
        for row in raw["memories"]
    ]
    parts.append(
        "Memories, simulated\n\n" + table(["replicas", "memories", "tokens per second", "tokens per forward"], lines)
    )
    lines = [
        [
            row["method"],
            str(row["gpus"]),
            row["policy"],
            "bursts" if row["bursty"] else "Poisson",
            f"{row['rate']:.2f}",
            f"{row.get('tokens', 0):.0f}",
            f"{row.get('first', (0, 0))[1]:.2f}",
            f"{1000 * row.get('token', (0, 0))[1]:.0f}",
            f"{100 * row.get('cached', 0):.0f} %",
        ]
        for row in raw["fleets"]
    ]
    head = (
        "method",
        "GPUs",
        "routing",
        "arrivals",
        "requests/s/GPU",
        "tokens/s/GPU",
        "first token p95, s",
        "token p95, ms",
    )
    parts.append("Fleets, simulated\n\n" + table([*head, "prompt found"], lines))
    return "\n\n".join(parts)


def draw(raw: dict[str, Any], path: Path) -> None:
    """Tokens per second over plain decoding, by requests at once."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    for axes, card in zip(
        figure.subplots(1, len(raw["cards"]), sharey=True, squeeze=False)[0], raw["cards"], strict=True
    ):
        for method in METHODS:
            curve, plain = (curve_of(raw["one"], card, name).rates for name in (method, PLAIN))
            axes.plot(list(curve), [curve[n] / plain[n] for n in curve], marker="o", markersize=3, label=method)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(plain), [str(n) for n in plain])
        axes.set_xlabel("requests at once")
        axes.set_title(f"{CARDS[card].name} (simulated)", fontsize=9)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("tokens per second, of plain decoding")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main(words: Sequence[str] | None = None) -> int:
    chosen = _parser().parse_args(words)
    tell = Console(stderr=True, soft_wrap=True)
    if chosen.table is not None:
        raw = json.loads(chosen.table.read_text())
        if chosen.fleets:
            raw["fleets"] = fleets(raw["one"], raw["cards"][0], tell)
            _save(raw, chosen.out)
    else:
        pair = ouroboros.load(dtype="float32", pool=False, threads=1)
        raw = {"command": "python -m benchmarks.scaling", "cards": chosen.cards}
        raw |= {"one": [], "memories": [], "fleets": []}
        for card in chosen.cards:
            for method in METHODS:
                for at_once in AT_ONCE:
                    raw["one"].append(one_gpu(pair, card, method, at_once))
                    tell.print(json.dumps(raw["one"][-1]))
                    _save(raw, chosen.out)
        for replicas in REPLICAS:
            for exchanged in (False, True)[: 1 if replicas == 1 else 2]:
                raw["memories"].append(memories(pair, chosen.cards[0], replicas, exchanged))
                tell.print(json.dumps(raw["memories"][-1]))
                _save(raw, chosen.out)
        raw["fleets"] = fleets(raw["one"], chosen.cards[0], tell)
        _save(raw, chosen.out)
    if chosen.plot is not None:
        draw(raw, chosen.plot)
    print(report(raw))
    return 0


def _save(raw: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(_rounded(raw)) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cards", type=lambda text: text.split(","), default=["h200"], help=f"of {', '.join(CARDS)}")
    add("--out", type=Path, default=Path("scaling.json"), metavar="RAW.json")
    add("--plot", type=Path, metavar="FILE", help="a PNG or SVG")
    add("--table", type=Path, metavar="RAW.json", help="only prints the tables of a file")
    add("--fleets", action="store_true", help="with --table: simulates the fleets anew")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OuroborosError as error:
        sys.exit(f"error: {error}")
