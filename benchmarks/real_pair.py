"""All methods on a real pair of models, as a user meets them: chat prompts, a fresh process, nothing measured before.

    python -m benchmarks.real_pair --target DIR --draft DIR --out raw.json      # from the repository's root
    python -m benchmarks.real_pair --scenario quiet --scenario busy-load --scenario busy-middle --out raw.json
    python -m benchmarks.real_pair --table raw-quiet.json raw-busy-load.json    # only the tables, as Markdown

Without --target and --draft they are qwen-coder-1.5b and qwen-coder-0.5b in the directory OUROBOROS_REAL_MODELS.

Each scenario runs in a process of its own with an empty cache directory: no profile, no tuned options. Only compiled
kernels are copied there, so that no compiler runs while the load is timed. ``load`` runs with its defaults, but for
``pool=False``: no phrases are kept from prompt to prompt, by no method. What Ouroboros learns of costs and acceptance
stays, as it does for a user. The other methods decode with the same loaded models. Before the first prompt plain and
speculative decoding write a few tokens of another text; Ouroboros does not.

All methods take each prompt by turns, in an order that rotates, at the same seed; each request is complete, with its
own prefill, to the end of the text or --new-tokens.

    quiet        nothing else runs
    busy-load    a busy program on every core begins before the load and ends with it
    busy-middle  a busy program comes for five seconds when Ouroboros's request of the 4th prompt begins (at the first
                 temperature), and of the 8th (at the last one); runs that it overlapped are marked

With several scenarios the file of each gets its name: raw-quiet.json. A file that exists is gone on with, if its
settings, machine and commit are the same. Tables go to standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub.constants

from benchmarks.real_prompts import SETS
from benchmarks.real_results import PLAIN, SUBJECT, read_raw
from benchmarks.real_run import parse_method
from benchmarks.real_table import tables
from ouroboros.config import options_for
from ouroboros.directories import cache_directory
from ouroboros.errors import OuroborosError
from ouroboros.kernels.library import library

ROOT = Path(__file__).parents[1]
SCENARIOS = ("quiet", "busy-load", "busy-middle")
SPECULATIVE = tuple(f"speculative-{count}" for count in (3, 4, 5, 8))
METHODS = (PLAIN, *SPECULATIVE, "suffix_decoding", "prompt_lookup", SUBJECT)
MODELS = "OUROBOROS_REAL_MODELS"


def main(words: Sequence[str] | None = None) -> int:
    parser = _parser()
    chosen = parser.parse_args(words)
    if chosen.table:
        print(tables([read_raw(path) for path in chosen.table]))
        return 0
    if chosen.out is None:
        parser.error("--out is needed: the raw file")
    if not (chosen.target and chosen.draft):
        parser.error(f"give --target and --draft, or the directory of the models as {MODELS}")
    for name in (PLAIN, SUBJECT):
        if name not in chosen.methods:
            parser.error(f"--methods must hold {name!r}: the others are held against it")
    scenarios = list(dict.fromkeys(chosen.scenario or ["quiet"]))
    paths = {name: chosen.out.with_stem(f"{chosen.out.stem}-{name}") for name in scenarios}
    if len(scenarios) == 1:
        paths = {scenarios[0]: chosen.out}
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the process ends as well
    for scenario, path in paths.items():
        if code := _measure(_settings(chosen, scenario), path):
            return code
    print(tables([read_raw(path) for path in paths.values()]))
    return 0


def _parser() -> argparse.ArgumentParser:
    folder = os.environ.get(MODELS)
    target, draft = (str(Path(folder) / f"qwen-coder-{size}") if folder else None for size in ("1.5b", "0.5b"))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_pair",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--target", default=target, help="directory or hub id of the target model")
    add("--draft", default=draft, help="of the draft model")
    add("--dtype", default="bfloat16")
    add("--engine", default="auto")
    add("--new-tokens", type=_count, default=128, help="at most; default 128")
    add("--temperatures", type=_temperatures, default=[0.0, 0.8], help="separated by commas; default 0,0.8")
    add("--prompts", default="reporting", help=f"{' or '.join(SETS)} (built in), or a file; default reporting")
    add("--limit", type=_count, help="only the first prompts")
    add("--scenario", action="append", choices=SCENARIOS, help="may be repeated; default quiet")
    add("--methods", type=_methods, default=list(METHODS), help=f"separated by commas; default {','.join(METHODS)}")
    add("--repeats", type=_count, default=1, help="requests of each method on each prompt; default 1")
    add("--out", type=Path, metavar="RAW.json", help="the raw file")
    add("--table", type=Path, nargs="+", metavar="RAW.json", help="measure nothing, make tables of these files")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _temperatures(text: str) -> list[float]:
    return list(dict.fromkeys(float(part) for part in text.split(",")))


def _methods(text: str) -> list[str]:
    """Labels; ``plain`` is short for plain decoding's method.

    Raises:
        ArgumentTypeError: a label of no method, or with options that it does not take.
    """
    labels = [PLAIN if part == "plain" else part for part in dict.fromkeys(text.split(","))]
    for label in labels:
        try:
            options_for(*parse_method(label))
        except (ValueError, OuroborosError) as error:
            raise argparse.ArgumentTypeError(f"{label!r}: {error}") from None
    return labels


def _settings(chosen: argparse.Namespace, scenario: str) -> dict[str, Any]:
    names = (
        "target",
        "draft",
        "dtype",
        "engine",
        "new_tokens",
        "temperatures",
        "prompts",
        "limit",
        "methods",
        "repeats",
    )
    settings = {name: getattr(chosen, name) for name in names} | {"scenario": scenario}
    for name in ("target", "draft"):
        if Path(settings[name]).is_dir():
            settings[name] = str(Path(settings[name]).resolve())  # not a hub id: the process runs elsewhere
    if settings["prompts"] not in SETS:
        settings["prompts"] = str(Path(settings["prompts"]).resolve())
    return settings


def _measure(settings: dict[str, Any], out: Path) -> int:
    """Runs a scenario in a process of its own with an empty cache directory; returns its exit status."""
    library()  # compiled now if they never were
    kernels = cache_directory() / "kernels"
    with tempfile.TemporaryDirectory(prefix="real-pair-") as scratch:
        own = {"XDG_CACHE_HOME": scratch, "LOCALAPPDATA": scratch, "HF_HOME": huggingface_hub.constants.HF_HOME}
        if kernels.is_dir():
            shutil.copytree(kernels, Path(scratch) / "ouroboros" / "kernels")
        command = [sys.executable, "-m", "benchmarks.real_run", json.dumps(settings), str(out.resolve())]
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **own})
        try:
            return process.wait()
        finally:  # interrupted: the raw file keeps what was written
            process.terminate()
            process.wait()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except OuroborosError as error:
        sys.exit(f"error: {error}")
