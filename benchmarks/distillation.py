"""What distilling a draft for its target is worth, against training the same draft on text alone.

    python benchmarks/distillation.py                                       # the embedded target, a copy of 3 layers
    python benchmarks/distillation.py --steps 3000 --device cuda --target DIR --layers 4 --text FILE …

Two drafts begin with the same weights and take the same number of steps with the same batches' size: one learns text
(cross-entropy), the other the target's distribution (--loss) on the same text and on what the target itself writes for
prompts taken from that text. Then both draft for the target on the held-out prompts: speculative decoding, γ = 5,
temperature 1, five seeds. Figures: accepted draft tokens per target forward and tokens per target forward, with a 95 %
bootstrap interval over prompts of the ratio between the two drafts. By default the text is the standard library of this
Python, and the held-out prompts are those of HumanEval in benchmarks/data. Raw results:
benchmarks/results/distillation.json.
"""

from __future__ import annotations

import argparse
import ast
import json
import platform
import random
import subprocess
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import ouroboros
from ouroboros.models.loading import pick_device
from ouroboros.training.examples import Batches, windows
from ouroboros.training.modules import Sizes, new_module, prune, read_module, write_module
from ouroboros.training.records import jobs_for, record
from ouroboros.training.settings import parse_loss
from ouroboros.training.trainer import Plan, Trainer, mean_of_last, pick_autocast

HERE = Path(__file__).parent
EMBEDDED = Path(ouroboros.__file__).parent / "embedded"
RAW = HERE / "results" / "distillation.json"
Row = dict[str, int]


def library_files(count: int, seed: int) -> list[Path]:
    """Files of the standard library, drawn by the seed."""
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in library.glob("*.py") if path.stat().st_size > 4000)
    return random.Random(seed).sample(files, k=min(count, len(files)))


def function_heads(text: str) -> Iterator[str]:
    """Signature and docstring of the functions of a file: prompts like those of HumanEval, on other matter."""
    with warnings.catch_warnings(action="ignore"):
        tree = ast.parse(text)
    lines = text.splitlines(keepends=True)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and len(node.body) > 1:
            head = "".join(lines[node.lineno - 1 : node.body[0].end_lineno])
            if len(head) < 1200:
                yield head


def train(
    name: str, start: Path, target: Any | None, loss: str, batches: Batches, arguments: argparse.Namespace, tell: Any
) -> tuple[Any, dict[str, Any]]:
    device = pick_device(arguments.device)
    draft = read_module(start, torch.float32, device)
    kind = pick_autocast("auto", device)
    plan = Plan(arguments.steps, arguments.learning_rate, parse_loss(loss), muon=True, autocast=kind)
    trainer = Trainer(draft, target, plan)
    began = time.perf_counter()
    trainer.run(batches, arguments.steps, lambda step, value: tell(name, step, arguments.steps, f"loss {value:.3f}"))
    seconds = time.perf_counter() - began
    return draft, {"loss": loss, "final_loss": mean_of_last(trainer.losses), "seconds": seconds}


def decode(
    engine: ouroboros.Decoder, draft: Path, prompts: Sequence[str], arguments: argparse.Namespace, tell: Any, name: str
) -> list[Row]:
    """Counts of each prompt, over all seeds."""
    target = engine.target
    pair = ouroboros.load(
        target,
        draft,
        tokenizer=engine.tokenizer,
        method="speculative",
        options={"draft_tokens": arguments.gamma},
        dtype=target.info.dtype,
        device=target.info.device,
    )
    rows = []
    for number, prompt in enumerate(prompts):
        row = dict.fromkeys(("new_tokens", "target_forwards", "accepted_tokens", "draft_tokens"), 0)
        for seed in range(arguments.seeds):
            result = pair.generate(
                prompt, max_new_tokens=arguments.new_tokens, temperature=arguments.temperature, seed=seed
            )
            for count in row:
                row[count] += getattr(result.stats, count)
        rows.append(row)
        tell(f"decoding, {name}", number + 1, len(prompts), "")
    return rows


def figure(rows: Sequence[Row], count: str) -> float:
    return sum(row[count] for row in rows) / max(1, sum(row["target_forwards"] for row in rows))


def gain(distilled: Sequence[Row], text: Sequence[Row], count: str) -> tuple[float, float, float]:
    """The ratio of the two drafts, and its 95 % bootstrap interval over prompts, which both have in common."""
    rng = random.Random(0)
    pairs = list(zip(distilled, text, strict=True))
    values = []
    for _ in range(2000):
        some = rng.choices(pairs, k=len(pairs))
        values.append(figure([a for a, _ in some], count) / max(1e-9, figure([b for _, b in some], count)))
    values.sort()
    return figure(distilled, count) / max(1e-9, figure(text, count)), values[50], values[-51]


def run(arguments: argparse.Namespace, tell: Callable[[str, int, int, str], None], work: Path) -> dict[str, Any]:
    device = pick_device(arguments.device)
    files = [Path(name) for name in arguments.text] or library_files(arguments.files, arguments.seed)
    texts = [path.read_text(encoding="utf-8") for path in files]
    heads = sorted({head for text in texts for head in function_heads(text)})
    heads = random.Random(arguments.seed).sample(heads, k=min(arguments.prompts, len(heads)))
    held_out = [json.loads(line)["prompt"] for line in arguments.held_out.read_text(encoding="utf-8").splitlines()]
    held_out = held_out[: arguments.held_out_prompts]

    engine = ouroboros.load(arguments.target, method="lookahead", device=arguments.device)
    assert engine.tokenizer is not None
    jobs = jobs_for([engine.tokenizer.encode(head) for head in heads], (1.0,), 1, arguments.seed)
    records = record(
        engine, jobs, arguments.new_tokens, work / "text.jsonl", lambda n, all: tell("the target writes", n, all, "")
    )
    plain = windows([engine.tokenizer.encode(text) for text in texts], arguments.length)
    teacher = read_module(Path(arguments.target), torch.float32 if device.type == "cpu" else "auto", device)
    teacher.requires_grad_(False)
    start = work / "start"
    if arguments.hidden:
        sizes = Sizes(arguments.hidden, arguments.layers, max(1, arguments.hidden // 32), arguments.hidden * 8 // 3)
        module = new_module(sizes, teacher, arguments.seed)
    else:
        module = prune(teacher, arguments.layers)
    write_module(module, start, torch.float32, Path(arguments.target))

    shape = arguments.batch, arguments.length, arguments.seed
    both = [*plain, *(one.example for one in records)]
    rows: dict[str, list[Row]] = {}
    trained: dict[str, Any] = {}
    for name, target, loss, batches in (
        ("text alone", None, "text", Batches(plain, *shape)),
        ("distilled", teacher, arguments.loss, Batches(both, *shape)),
    ):
        draft, trained[name] = train(name, start, target, loss, batches, arguments, tell)
        directory = work / name.replace(" ", "-")
        write_module(draft, directory, torch.float32, Path(arguments.target))
        rows[name] = decode(engine, directory, held_out, arguments, tell, name)
    return {
        "settings": {name: plain_value(value) for name, value in vars(arguments).items()},
        "text_tokens": sum(len(one.tokens) for one in plain),
        "target_tokens": sum(len(one.tokens) for one in records),
        "draft_parameters": sum(p.numel() for p in module.parameters()),
        "target_parameters": engine.target.info.parameters,
        "trained": trained,
        "rows": rows,
        "gain": {
            count: gain(rows["distilled"], rows["text alone"], count) for count in ("accepted_tokens", "new_tokens")
        },
        "versions": {
            "ouroboros": ouroboros.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": platform.machine(),
        "commit": subprocess.check_output(["git", "describe", "--always", "--dirty"], text=True, cwd=HERE).strip(),
    }


def plain_value(value: Any) -> Any:
    """What JSON takes; of files and directories the name alone."""
    if isinstance(value, list):
        return [Path(name).name for name in value]
    return Path(value).name if isinstance(value, Path) or (isinstance(value, str) and "/" in value) else value


def table(result: dict[str, Any]) -> str:
    lines = ["| draft | accepted per target forward | tokens per target forward | training |", "|---|---|---|---|"]
    for name, rows in result["rows"].items():
        one = result["trained"][name]
        accepted, made = figure(rows, "accepted_tokens"), figure(rows, "new_tokens")
        lines.append(f"| {name} ({one['loss']}) | {accepted:.3f} | {made:.3f} | {one['seconds']:.0f} s |")
    for count, words in (("accepted_tokens", "accepted tokens"), ("new_tokens", "tokens")):
        ratio, low, high = result["gain"][count]
        lines.append(f"\n{words} per target forward: {ratio:.3f} × ({low:.3f}–{high:.3f})")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--target", default=str(EMBEDDED / "target"))
    add(
        "--text", action="append", default=[], help="a Python file to learn from; default: some of the standard library"
    )
    add("--files", type=int, default=60, help="of the standard library")
    add("--prompts", type=int, default=200, help="beginnings of functions that the target goes on with")
    add("--held-out", type=Path, default=HERE / "data" / "humaneval.jsonl")
    add("--held-out-prompts", type=int, default=82)
    add("--hidden", type=int, default=0, help="of a new draft; 0: a copy of the target with --layers of its layers")
    add("--layers", type=int, default=3)
    add("--loss", default="forward_kl=0.5,tv=2")
    add("--steps", type=int, default=1000)
    add("--batch", type=int, default=16)
    add("--length", type=int, default=256)
    add("--learning-rate", type=float, default=3e-4)
    add("--gamma", type=int, default=5)
    add("--temperature", type=float, default=1.0)
    add("--seeds", type=int, default=5)
    add("--new-tokens", type=int, default=128)
    add("--device", default="auto")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=torch.get_num_threads())
    add("--out", type=Path, default=RAW)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with tempfile.TemporaryDirectory() as work, Progress(*columns, TextColumn("{task.fields[note]}")) as progress:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, note="")
            progress.update(tasks[stage], completed=done, total=total, note=note)

        result = run(arguments, tell, Path(work))
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
