"""What a forward of a GGUF file costs: this library and llama.cpp on the very same file, in one interleaved run.

    python -m benchmarks.gguf_speed --model FILE --peer-python VENV/bin/python

T(n): n rows behind 256 positions, logits of all of them; a prefill of 512 tokens without logits. Each side is a process
of its own that waits for its turn; after each turn there is a pause for its threads to stop spinning. The peer's
environment has llama-cpp-python; without ``--peer-python`` this library alone is measured. Beside them as many bytes as
a row reads are summed up by as many threads: how fast memory is at that moment. Memory is what a process holds before
its model is loaded and after a forward, in pages of its own and mapped ones. Results:
benchmarks/results/gguf_speed-NAME.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROWS = (1, 2, 4, 8, 16)
CACHED, PREFILL = 256, 512
OURS, PEER, LIMIT = "ouroboros", "llama.cpp", "reading"
Forward = Callable[[int, bool], None]  # a forward over so many rows; whether it is a prefill


def tokens(count: int, vocabulary: int, seed: int = 1) -> list[int]:
    return [(seed * 7919 + i * 104_729) % vocabulary for i in range(count)]


def ours(file: Path, threads: int) -> tuple[Forward, dict[str, Any]]:
    import torch

    from ouroboros.models.base import ScoreRequest
    from ouroboros.models.loading import load_directory
    from ouroboros.tree import Origin, TokenTree

    torch.set_num_threads(threads)
    before, start = resident(), time.perf_counter()
    model = load_directory(file, "auto", torch.device("cpu"))
    loaded = time.perf_counter() - start
    text, slot, empty = tokens(PREFILL, model.info.vocab_size), model.open(), model.open()
    model.prefill(slot, text[:CACHED])

    def forward(count: int, prefill: bool) -> None:
        if prefill:
            model.prefill(empty, text[:count])
            empty.rewind(0)
            return
        tree = TokenTree(text[0])
        tree.extend(0, text[1:count], Origin.DRAFT)
        model.score([ScoreRequest(slot, tree)])
        slot.truncate(0)

    info = model.info
    told = {"before": before, "load_seconds": loaded, "engine": info.engine, "dtype": info.dtype, "stored": info.stored}
    return forward, {**told, "bytes": info.work.bytes, "products": info.work.products}


def llama_cpp(file: Path, threads: int) -> tuple[Forward, dict[str, Any]]:
    import llama_cpp as lib

    before, start = resident(), time.perf_counter()
    sizes = {"n_ctx": 1024, "n_batch": PREFILL, "n_ubatch": PREFILL, "n_threads": threads, "n_threads_batch": threads}
    llama = lib.Llama(str(file), **sizes, verbose=False)
    loaded = time.perf_counter() - start
    memory, batch = lib.llama_get_memory(llama.ctx), lib.llama_batch_init(PREFILL, 0, 1)
    text = tokens(PREFILL, llama.n_vocab())

    def decode(new: list[int], start: int, logits: bool) -> None:
        batch.n_tokens = len(new)
        for i, token in enumerate(new):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
            batch.logits[i] = logits
        assert lib.llama_decode(llama.ctx, batch) == 0
        lib.llama_synchronize(llama.ctx)

    def forward(count: int, prefill: bool) -> None:
        if prefill:  # the last thing that is measured
            lib.llama_memory_seq_rm(memory, 0, 0, -1)
            decode(text[:count], 0, False)
        else:
            decode(text[:count], CACHED, True)
            lib.llama_memory_seq_rm(memory, 0, CACHED, -1)

    decode(text[:CACHED], 0, False)
    return forward, {"before": before, "load_seconds": loaded, "version": lib.__version__}


def reading(size: int, threads: int) -> tuple[Forward, dict[str, Any]]:
    import torch

    torch.set_num_threads(threads)
    memory = torch.ones(size // 4)
    return lambda count, prefill: float(memory.sum()) and None, {"bytes": size}


def serve(side: str, file: Path, threads: int, size: int) -> None:
    """Reads lines ``rows prefill``; answers each with seconds."""
    answers, sys.stdout = sys.stdout, sys.stderr
    if side == LIMIT:
        forward, told = reading(size, threads)
    else:
        forward, told = (ours if side == OURS else llama_cpp)(file, threads)
    forward(ROWS[-1], False)
    print(json.dumps({**told, "memory": resident()}), file=answers, flush=True)
    for line in sys.stdin:
        count, prefill = map(int, line.split())
        start = time.perf_counter()
        forward(count, bool(prefill))
        print(json.dumps(time.perf_counter() - start), file=answers, flush=True)


def resident() -> dict[str, int]:
    """Bytes in memory: this process's own, and of mapped files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(fields[key].split()[0]) * 1024 for name, key in (("own", "RssAnon"), ("mapped", "RssFile"))}


@contextmanager
def running(side: str, python: str, args: argparse.Namespace, size: int = 0) -> Iterator[tuple[Any, Any]]:
    command = [python, __file__, "--serve", side, "--model", str(args.model), "--threads", str(args.threads)]
    worker = subprocess.Popen([*command, "--size", str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdin is not None
    assert worker.stdout is not None
    told = json.loads(worker.stdout.readline())

    def ask(count: int, prefill: bool) -> float:
        assert worker.stdin is not None
        assert worker.stdout is not None
        time.sleep(args.pause)
        worker.stdin.write(f"{count} {int(prefill)}\n")
        worker.stdin.flush()
        return float(json.loads(worker.stdout.readline()))

    try:
        yield ask, told
    finally:
        worker.stdin.close()
        worker.wait()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        asks, told = {}, {}
        asks[OURS], told[OURS] = stack.enter_context(running(OURS, sys.executable, args))
        if args.peer_python:
            asks[PEER], told[PEER] = stack.enter_context(running(PEER, args.peer_python, args))
        asks[LIMIT], _ = stack.enter_context(running(LIMIT, sys.executable, args, told[OURS]["bytes"]))
        seconds: dict[str, dict[str, list[float]]] = {side: {} for side in asks}
        for name, count, prefill, runs in [
            *((f"T({n})", n, False, args.runs) for n in ROWS),
            (f"prefill({PREFILL})", PREFILL, True, min(3, args.runs)),
        ]:
            for run in range(runs + (not prefill)):
                for side, ask in asks.items():
                    if side == LIMIT and name != "T(1)":
                        continue
                    took = ask(count, prefill)
                    if run or prefill:  # the first warms up
                        seconds[side].setdefault(name, []).append(took)
            medians = {side: statistics.median(times[name]) for side, times in seconds.items() if name in times}
            print(name, ", ".join(f"{side} {1e3 * t:.1f} ms" for side, t in medians.items()), flush=True)
    sides = {
        side: {**told.get(side, {}), "milliseconds": {n: [round(1e3 * t, 2) for t in ts] for n, ts in times.items()}}
        for side, times in seconds.items()
    }
    return {"file": args.model.name, "file_bytes": args.model.stat().st_size, "threads": args.threads,
            "processor": processor(), "pause": args.pause, "sides": sides}  # fmt: skip


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores"


def report(raw: dict[str, Any]) -> str:
    sides = raw["sides"]
    lines = ["| | " + " | ".join(sides) + " | ratio |", "|---" * (len(sides) + 2) + "|"]
    for name in sides[OURS]["milliseconds"]:
        medians = {side: statistics.median(found) for side in sides if (found := sides[side]["milliseconds"].get(name))}
        ratio = f"{medians[OURS] / medians[PEER]:.2f}" if PEER in medians else ""
        cells = [f"{medians[side]:.1f}" if side in medians else "" for side in sides]
        lines.append(f"| {name} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="a GGUF file")
    parser.add_argument("--peer-python", metavar="PATH", help="a Python that has llama-cpp-python")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pause", type=float, default=0.1, help="seconds before each forward")
    parser.add_argument("--out", type=Path, help="where the results go")
    parser.add_argument("--serve", choices=(OURS, PEER, LIMIT), help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.model, args.threads, args.size)
        return
    raw = measure(args)
    out = args.out or RESULTS / f"gguf_speed-{args.model.stem}.json"
    out.write_text(json.dumps(raw, indent=1) + "\n")
    print(report(raw))


if __name__ == "__main__":
    main()
