"""What a forward over n rows costs: the native decoder's engines, transformers and llama.cpp, in one interleaved run.

    python benchmarks/forward_cost.py --llama-python VENV/bin/python     # measures, then writes the table
    python benchmarks/forward_cost.py --report                           # the table alone, from the raw results

Random weights in bf16, 256 positions in the cache, logits of all rows on every side. Each engine is a process of its
own that waits for its turn; for each n they take turns, ``--repeats`` times, so that whatever else the machine does
meets all of them. The target's weights are larger than the caches; before each forward of the draft model 64 MB of
other memory are read, as a target's forward between two drafts would. Beside them the same bytes are summed up, by as
many threads: how fast memory is at that moment. llama.cpp runs in the environment of
``--llama-python`` (pip install llama-cpp-python gguf); what is not installed is reported as absent. A run replaces the
last one with as many threads. Raw results: benchmarks/results/forward_cost.json; table: benchmarks/forward_cost.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RAW, TABLE = HERE / "results" / "forward_cost.json", HERE / "forward_cost.md"
ROWS = (1, 2, 4, 8, 16, 32, 64)
WORKER = HERE.parent / "src" / "ouroboros" / "bench" / "peers" / "llama_worker.py"
CACHED = 256
VOCABULARY = 32_000
COMMON = {"model_type": "llama", "vocab_size": VOCABULARY, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5}
MODELS: dict[str, dict[str, Any]] = {
    "target": {
        **COMMON,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    "draft": {
        **COMMON,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
}
TINY = {**COMMON, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
ROUNDED = ("int8", "int4", "w8a8")  # the kernels with such weights
LIMIT = "reading the weights"  # no engine: bytes of the bf16 weights and the cache that a forward reads, summed up
ENGINES = ("kernels", *ROUNDED, "packed", "plain", "transformers eager", "transformers", "llama.cpp", LIMIT)
Forward = Callable[[list[int]], Any]  # rows behind the cached positions; returns their logits


def tokens(count: int, seed: int) -> list[int]:
    return [(seed * 7919 + i * 104_729) % VOCABULARY for i in range(count)]


# ------------------------------------------------------------------------------------------------------- one engine


def native(path: Path, engine: str) -> Forward:
    import torch

    from ouroboros.models.base import ScoreRequest
    from ouroboros.models.loading import load_directory
    from ouroboros.tree import Origin, TokenTree

    dtype, engine = (engine, "kernels") if engine in ROUNDED else ("bfloat16", engine)
    model = load_directory(path, dtype, torch.device("cpu"), engine)
    slot = model.open()
    model.prefill(slot, tokens(CACHED, 1))

    def forward(new: list[int]) -> Any:
        tree = TokenTree(new[0])
        tree.extend(0, new[1:], Origin.DRAFT)
        (logits,) = model.score([ScoreRequest(slot, tree)])
        slot.truncate(0)
        return logits

    return forward


def through_transformers(path: Path, attention: str) -> Forward:
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation=attention)
    model.eval()
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(torch.tensor([tokens(CACHED, 1)]), past_key_values=cache)

    def forward(new: list[int]) -> Any:
        with torch.inference_mode():
            logits = model(torch.tensor([new]), past_key_values=cache, use_cache=True).logits[0]
        cache.crop(-len(new))
        return logits

    return forward


def read_bytes(config: dict[str, Any]) -> int:
    """Of bf16 weights and the cached positions, once: what one row reads. Of the embedding a row alone is read."""
    from ouroboros.models.families import parse_config

    parsed = parse_config(config)
    cached = 2 * CACHED * parsed.num_hidden_layers * parsed.num_key_value_heads * parsed.head_dim
    return 2 * (parsed.parameters() - parsed.vocab_size * parsed.hidden_size + cached)


def reading(path: Path) -> Forward:
    import torch

    memory = torch.ones(read_bytes(json.loads((path / "config.json").read_text())) // 4)

    def forward(new: list[int]) -> Any:
        return memory.sum()[None, None]

    return forward


def llama_cpp(path: Path, threads: int) -> Forward:
    import llama_cpp as lib
    import numpy as np

    file = str(write_gguf(path)).encode()
    lib.llama_backend_init()
    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, None)
    options = lib.llama_model_default_params()
    options.use_mmap = False
    model = lib.llama_model_load_from_file(file, options)
    settings = lib.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 512
    settings.n_threads = settings.n_threads_batch = threads
    context = lib.llama_init_from_model(model, settings)
    batch = lib.llama_batch_init(512, 0, 1)

    def decode(new: list[int], start: int, logits: bool) -> None:
        batch.n_tokens = len(new)
        for i, token in enumerate(new):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
            batch.logits[i] = logits
        assert lib.llama_decode(context, batch) == 0

    decode(tokens(CACHED, 1), 0, False)

    def forward(new: list[int]) -> Any:
        decode(new, CACHED, True)
        address = lib.llama_get_logits(context)
        lib.llama_memory_seq_rm(lib.llama_get_memory(context), 0, CACHED, -1)
        return np.ctypeslib.as_array(address, (len(new), VOCABULARY))

    forward.held = (model, batch, quiet)  # type: ignore[attr-defined]
    return forward


def write_gguf(path: Path) -> Path:
    """By the script that the benchmark's peers use: here, in llama.cpp's environment, the library is not installed."""
    file = path / "model.gguf"
    command = [sys.executable, str(WORKER), "convert", str(path), str(file), "bfloat16"]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert "ready" in json.loads(told), told
    return file


def serve(engine: str, path: Path, threads: int, sweep: int) -> None:
    """Reads lines ``n seed``; answers each with seconds and the largest logit's index of the last row."""
    answers, sys.stdout = sys.stdout, sys.stderr
    if engine == "llama.cpp":
        from numpy import ones

        forward, scratch = llama_cpp(path, threads), ones(sweep // 8 + 1)
        memory = None
    else:
        import torch

        torch.set_num_threads(threads)

        def load(path: Path) -> Forward:
            if engine == LIMIT:
                return reading(path)
            if engine.startswith("transformers"):
                return through_transformers(path, "eager" if "eager" in engine else "sdpa")
            return native(path, engine)

        with tempfile.TemporaryDirectory() as tiny:  # what is imported, or paged in, on first use
            checkpoint(Path(tiny), TINY)
            load(Path(tiny))(tokens(ROWS[-1], 2))
        gc.collect()
        before = resident(reset=True)
        forward = load(path)
        forward(tokens(ROWS[-1], 2))
        memory = resident() - before
        scratch = torch.ones(sweep // 8 + 1, dtype=torch.float64)
    print(json.dumps({"memory": memory}), file=answers, flush=True)
    for line in sys.stdin:
        count, seed = map(int, line.split())
        new = tokens(count, seed)
        if sweep:
            float(scratch.sum())
        start, busy = time.perf_counter(), time.process_time()
        logits = forward(new)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        answer = {"seconds": seconds, "processor": busy, "best": int(logits[-1].argmax())}
        print(json.dumps(answer), file=answers, flush=True)


def resident(reset: bool = False) -> int:
    """Peak resident bytes of this process since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


# ------------------------------------------------------------------------------------------------------ measurement


@contextmanager
def running(engine: str, path: Path, args: argparse.Namespace, sweep: int) -> Iterator[Any]:
    """(ask, memory), or None where the engine is not to be had."""
    python = args.llama_python if engine == "llama.cpp" else sys.executable
    command = [python, __file__, "--serve", engine, str(path), "--threads", str(args.threads), "--sweep", str(sweep)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdin is not None
    assert worker.stdout is not None
    ready = worker.stdout.readline()

    def ask(count: int, seed: int) -> dict[str, Any]:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(f"{count} {seed}\n")
        worker.stdin.flush()
        answer: dict[str, Any] = json.loads(worker.stdout.readline())
        return answer

    try:
        yield (ask, json.loads(ready)["memory"]) if ready else None
    finally:
        worker.stdin.close()
        worker.wait()


def checkpoint(path: Path, config: dict[str, Any]) -> int:
    """Writes random weights; returns their number."""
    import torch
    from safetensors.torch import save_file

    from ouroboros.models.families import parse_config

    torch.manual_seed(0)
    tensors = {}
    for name, shape in parse_config(config).shapes().items():
        values = torch.ones(shape) if "norm" in name else torch.randn(shape) * shape[-1] ** -0.5
        tensors[name] = values.bfloat16()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    return sum(tensor.numel() for tensor in tensors.values())


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    from contextlib import ExitStack

    config = MODELS[name]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder)
        parameters = checkpoint(path, config)
        sweep = 64_000_000 if name == "draft" else 0
        engines = {}
        for engine in args.engines:
            found = stack.enter_context(running(engine, path, args, sweep))
            print(f"{name}: {engine}" + ("" if found else " is absent"), flush=True)
            if found:
                engines[engine] = found
        seconds: dict[str, dict[int, list[float]]] = {engine: {n: [] for n in ROWS} for engine in engines}
        processor: dict[str, dict[int, list[float]]] = {engine: {n: [] for n in ROWS} for engine in engines}
        agree = dict.fromkeys(engines, 0)
        for n in ROWS:
            for repeat in range(args.repeats + 1):
                answers = {}
                for engine, (ask, _) in engines.items():
                    time.sleep(args.pause)  # for the one before to stop spinning
                    answers[engine] = ask(n, 1000 * n + repeat)
                if repeat:  # the first warms up
                    for engine, answer in answers.items():
                        seconds[engine][n].append(answer["seconds"])
                        processor[engine][n].append(answer["processor"])
                        agree[engine] += answer["best"] == answers[args.engines[0]]["best"]
            told = (f"{engine} {1e3 * statistics.median(times[n]):.1f}" for engine, times in seconds.items())
            print(f"{name}, n = {n}: " + ", ".join(told) + " ms", flush=True)
        kv = 2 * 2 * config["num_hidden_layers"] * config["hidden_size"] * (CACHED + ROWS[-1])
        return {
            "config": config,
            "parameters": parameters,
            "kv_bytes": kv,
            "seconds": seconds,
            "processor_seconds": processor,
            "agree": {engine: count / (args.repeats * len(ROWS)) for engine, count in agree.items()},
            "memory": {engine: memory for engine, (_, memory) in engines.items()},
            "absent": [engine for engine in args.engines if engine not in engines],
        }


# ------------------------------------------------------------------------------------------------------------ table


def stored_bytes(config: dict[str, Any], engine: str) -> int:
    """Of the weights, in the format that the engine keeps them in."""
    from ouroboros.models.families import parse_config
    from ouroboros.models.quantised import weight_bytes

    return weight_bytes(parse_config(config).shapes(), engine if engine in ROUNDED else "bfloat16")


def report(raw: dict[str, Any]) -> str:
    lines = [f"## {raw['machine']}", "", f"`{raw['command']}`, commit {raw['commit']}.", ""]
    lines += [
        "bf16, 256 positions in the cache, logits of all rows; medians in ms (least in brackets), "
        f"{raw['repeats']} interleaved rounds. Load average during the run: {raw['load'][0]:.1f} to "
        f"{raw['load'][1]:.1f}: above the number of threads, only the least say what an engine can do."
        " `kernels` is the default on CPUs with AVX2 or AVX-512, `int8`, `int4` and `w8a8` are it with such weights; "
        "`packed` and `plain` are what other CPUs get. `transformers` computes attention by its default (sdpa), or "
        "eager.",
        "",
    ]
    if "threads" in raw:  # later than the first runs
        lines[-2] += (
            " Peak memory is that above a process which has run a tiny model of the same kind. Processor time (with "
            "one thread) is what a forward took of its core, without waiting for other programs."
        )
    for name, found in raw["models"].items():
        table = {e: {int(n): t for n, t in rows.items()} for e, rows in found["seconds"].items()}
        lines += [f"### {name}: {found['parameters'] / 1e6:.0f} M parameters", ""]
        lines += ["| engine | " + " | ".join(f"n = {n}" for n in ROWS) + " |", "|---" * (len(ROWS) + 1) + "|"]
        for engine, rows in table.items():
            cells = (f"{1e3 * statistics.median(rows[n]):.1f} ({1e3 * min(rows[n]):.1f})" for n in ROWS)
            lines.append(f"| {engine} | " + " | ".join(cells) + " |")
        for peer in ("llama.cpp", "transformers eager", "transformers", LIMIT):
            if peer in table and "kernels" in table:
                pairs = ([a / b for a, b in zip(table["kernels"][n], table[peer][n], strict=True)] for n in ROWS)
                lines.append(f"| kernels ÷ {peer} | " + " | ".join(f"{statistics.median(p):.2f}" for p in pairs) + " |")
            used = found.get("processor_seconds", {})
            if raw.get("threads") == 1 and {peer, "kernels"} <= used.keys():
                mine, theirs = ([statistics.median(used[e][str(n)]) for n in ROWS] for e in ("kernels", peer))
                ratios = (f"{a / b:.2f}" for a, b in zip(mine, theirs, strict=True))
                lines.append("| the same, processor time | " + " | ".join(ratios) + " |")
        lines.append("")
        if LIMIT in table:
            seconds = statistics.median(t for times in table[LIMIT].values() for t in times)
            size = read_bytes(found["config"])
            lines.append(
                f"- {LIMIT}: {size / 1e6:.0f} MB at {size / seconds / 1e9:.0f} GB/s, what a row needs at least"
            )
        for engine, memory in found["memory"].items():
            if memory and engine != LIMIT:
                ratio = memory / (stored_bytes(found["config"], engine) + found["kv_bytes"])
                lines.append(f"- peak memory of {engine}: {memory / 1e6:.0f} MB, {ratio:.2f} × weights and cache")
        agree = ", ".join(f"{engine} {share:.0%}" for engine, share in found["agree"].items() if engine != LIMIT)
        lines += [f"- same most likely token as the first engine: {agree}"]
        if found["absent"]:
            lines.append(f"- absent: {', '.join(found['absent'])}")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between two engines' turns")
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--sweep", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve[0], Path(args.serve[1]), args.threads, args.sweep)
        return
    if not args.report:
        loads = [os.getloadavg()[0]]
        models = {}
        for name in args.models:
            models[name] = measure(name, args)
            loads.append(os.getloadavg()[0])
        git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
        raw = {
            "command": f"python benchmarks/forward_cost.py --threads {args.threads}",
            "commit": git.stdout.strip(),
            "machine": f"{processor}, {args.threads} threads, {platform.system()}, Python {platform.python_version()}",
            "repeats": args.repeats,
            "threads": args.threads,
            "load": [min(loads), max(loads)],
            "models": models,
        }
        runs = json.loads(RAW.read_text()) if RAW.exists() else {}
        RAW.write_text(json.dumps({**runs, str(args.threads): raw}, indent=1) + "\n")
    runs = json.loads(RAW.read_text())
    TABLE.write_text("# What a forward costs\n\n" + "\n".join(report(runs[threads]) for threads in sorted(runs)))
    print(TABLE.read_text())


if __name__ == "__main__":
    main()
