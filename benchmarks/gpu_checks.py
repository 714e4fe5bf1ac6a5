"""All that needs a CUDA device, by one command: the tests for it, T(n) of a grown pair, its decoding speed, its syncs.

    python benchmarks/gpu_checks.py [--target yi-34b --draft yi-6b --dtypes bfloat16 int8 int4]
    python benchmarks/gpu_checks.py --small                  # the same in miniature on a CPU, to try the script

Models are the embedded pair grown in the device's memory. For each dtype T(n) of graphs (``auto``) and, for the first,
of PyTorch's operators one by one (``plain``); then a benchmark of every method, as ``ouroboros bench`` makes it, on the
first dtype. Syncs: how often the host waits for the device, by CUDA's own count, over a request's forwards. Each part
that fails is recorded as what it raised, and the others go on. Raw results: benchmarks/results/gpu.json; in miniature,
gpu_small.json in the system's directory for temporary files.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import ouroboros
from ouroboros.bench.benchmark import benchmark
from ouroboros.bench.profiling import ROWS, measure
from ouroboros.bench.report import markdown
from ouroboros.bench.settings import BenchSettings
from ouroboros.bench.tasks import load_task
from ouroboros.control.machine import machine
from ouroboros.models.grow import GrownShape, load_grown
from ouroboros.models.llama import LlamaModel
from ouroboros.pairing import EMBEDDED

RESULTS = Path(__file__).parent / "results"
SMALL = {"target": GrownShape(7, 256, 704, 4, 4, 64), "draft": GrownShape(6, 160, 432, 5, 5, 32)}
SMALL_SETTINGS = {"methods": ("speculative", "ouroboros"), "states": ("cold",), "max_prompt_tokens": 64}


def attempt(part: Callable[[], Any]) -> Any:
    try:
        return part()
    except Exception as error:  # whatever the device brings: the other parts are worth having
        return {"failed": f"{type(error).__name__}: {error}"}


def tests(small: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *(["--collect-only"] if small else [])]
    done = subprocess.run(command, cwd=RESULTS.parent.parent, capture_output=True, text=True, check=False)
    return {"command": " ".join(command[1:]), "status": done.returncode, "output": done.stdout[-4000:]}


def cost(model: LlamaModel, small: bool) -> dict[str, Any]:
    found = measure(model, ROWS[:4] if small else ROWS, (16,) if small else (256, 1024), 2 if small else 9, print)
    return {"engine": model.info.engine, **dataclasses.asdict(found)}


def syncs(target: LlamaModel, draft: LlamaModel, text: str) -> dict[str, Any]:
    """How often a request waits for the device, after one that captured its graphs."""
    decoder = ouroboros.load(target, draft, tokenizer=EMBEDDED / "target", pool=False)
    decoder.generate(text, max_new_tokens=48, ignore_eos=True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if target.info.device != "cpu":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            stats = decoder.generate(text, max_new_tokens=48, ignore_eos=True).stats
        finally:
            if target.info.device != "cpu":
                torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchroniz" in str(warning.message) for warning in seen)
    return {"waits": waits, "target_forwards": stats.target_forwards, "draft_forwards": stats.draft_forwards}


def speed(target: LlamaModel, draft: LlamaModel, settings: BenchSettings) -> dict[str, Any]:
    """All methods in turns: the results' lines, and their report."""

    def load(named: str | None, drafts: str | None, method: str) -> ouroboros.Decoder:
        return ouroboros.load(target, draft, tokenizer=EMBEDDED / "target", method=method, pool=False)

    def tell(stage: str, done: int, total: int, note: str) -> None:
        print(f"{stage} {done}/{total} {note}", flush=True)

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "speed.jsonl"
        text = markdown(benchmark(settings, path, load, tell, print))
        return {"lines": [json.loads(line) for line in path.read_text().splitlines()], "report": text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="yi-34b", help="a preset of ouroboros.models.shapes")
    parser.add_argument("--draft", default="yi-6b")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8", "int4"])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if args.small:
        args.dtypes, args.prompts, args.new_tokens = ["float32", "int4"], 1, 8
    elif not torch.cuda.is_available():
        parser.error("no CUDA device here; --small tries the script on a CPU")
    device, engine = ("cpu", "static") if args.small else ("cuda", "auto")
    names: Mapping[str, str | GrownShape] = SMALL if args.small else {"target": args.target, "draft": args.draft}

    def load(name: str, dtype: str, engine: str) -> LlamaModel:
        gc.collect()  # what was there before, graphs and caches included
        return load_grown(EMBEDDED / name, names[name], dtype, device, engine=engine)

    found: dict[str, Any] = {
        "settings": vars(args),
        "machine": machine(device),
        "version": ouroboros.__version__,
        "tests": attempt(lambda: tests(args.small)),
        "costs": {},
    }

    def keep(part: Mapping[str, Any]) -> None:
        """Writes all that there is after each part: a machine that is lent may go."""
        found.update(part)
        path = Path(tempfile.gettempdir(), "gpu_small.json") if args.small else RESULTS / "gpu.json"
        path.write_text(json.dumps(found, indent=1) + "\n")

    for name in names:
        for dtype, chosen in [(args.dtypes[0], "plain"), *((dtype, engine) for dtype in args.dtypes)]:
            key = f"{name} {names[name]}, {dtype}, {chosen}"
            print(key, flush=True)
            found["costs"][key] = attempt(lambda: cost(load(name, dtype, chosen), args.small))  # noqa: B023 - at once
            keep({})
    target, draft = (load(name, args.dtypes[0], engine) for name in names)
    text = str(load_task("humaneval", limit=1)[0].prompt)
    keep({"syncs": attempt(lambda: syncs(target, draft, text))})
    more: dict[str, Any] = SMALL_SETTINGS if args.small else {}
    named = {name: str(names[name]) for name in names}  # they are there already
    tuning = 0 if args.small else 2
    settings = BenchSettings(**named, dtype=args.dtypes[0], device=device, tasks=("humaneval",), prompts=args.prompts,
                             tuning_prompts=tuning, new_tokens=args.new_tokens, **more)  # fmt: skip
    keep({"speed": attempt(lambda: speed(target, draft, settings))})


if __name__ == "__main__":
    main()
