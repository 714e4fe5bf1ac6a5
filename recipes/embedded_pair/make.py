"""Makes the embedded pair: a small target model of Python code, and a draft model that is distilled for it.

    python recipes/embedded_pair/make.py --out DIR [--minutes M] [--device cuda] [--gsm8k FILE]
    python recipes/embedded_pair/make.py --out DIR --start PAIR …       # goes on from a pair (target/ and draft/)

Stages, each of which leaves files by which it is skipped when the command is given again:

    corpus   Python source of this machine under permissive licences, and GSM8K's training part (corpus.py)
    tokens   a byte-level BPE of 8,192 tokens (or that of --start); every document encoded, an end-of-sequence behind it
    target   a Llama trained on random windows of the tokens (with --start: the one that is there)
    lessons  the target learns prompts with their answers: heads of functions, questions (lessons.py)
    refine   rounds in which it learns its own best answers and unlearns its loops (refine.py)
    text     the target's own text, sampled in large batches (writer.py)
    draft    a smaller Llama (with --start: the one that is there, deepened), distilled on that text (follow.py)
    meet     target and draft trained together until they draw alike; the target gives way a little (meet.py)
    card     the figures of the pair, on prompts that were not in the corpus (card.py)

The number of steps is what the minutes allow, measured on the first steps; the options …-steps fix it, and so make a
run repeatable. All is drawn from --seed.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer

from ouroboros.training.examples import Batch, Batches
from ouroboros.training.modules import read_module, write_module
from ouroboros.training.settings import parse_loss
from ouroboros.training.trainer import Plan, Trainer, mean_of_last

sys.path.insert(0, str(Path(__file__).parents[2]))
from recipes.embedded_pair.card import write_card
from recipes.embedded_pair.corpus import build_corpus, default_workers
from recipes.embedded_pair.follow import Follower, OwnText, own_batches
from recipes.embedded_pair.functions import Function
from recipes.embedded_pair.lessons import Lessons, lessons_of
from recipes.embedded_pair.meet import Meeting, Pair
from recipes.embedded_pair.models import (
    LEARNED,
    SIZES,
    Windows,
    blend,
    deepened,
    encode,
    new_llama,
    seconds_of_a_step,
    sharpen,
    sizes_of,
    train_tokenizer,
    validation_losses,
    write_tokenizer,
)
from recipes.embedded_pair.refine import Loops, Refiner, alternate, best_answers, good_beginnings, is_good
from recipes.embedded_pair.writer import End, Writer

DATA = Path(__file__).parents[2] / "benchmarks" / "data"
STAGES = ("corpus", "tokens", "target", "lessons", "refine", "text", "draft", "meet", "card")
SHARES = {"target": 0.5, "lessons": 0.12, "refine": 0.1, "text": 0.06, "draft": 0.14, "meet": 0.06}  # of the minutes
SHARES_ON = {"lessons": 0.28, "refine": 0.2, "text": 0.1, "draft": 0.26, "meet": 0.12}  # the same, going on from a pair
MOST_EPOCHS = 24
# kinds of the target's text for the draft: what an end-of-sequence does, temperature, share
OWN_TEXT: tuple[tuple[End, float, float], ...] = (
    ("forbid", 0.8, 0.26),
    ("forbid", 1.0, 0.26),
    ("forbid", 0.0, 0.12),
    ("stop", 0.8, 0.1),
    ("stop", 1.0, 0.1),
    ("pass", 0.8, 0.08),
    ("pass", 1.0, 0.08),
)


class Run:
    """One run of the command in its directory."""

    def __init__(self, arguments: argparse.Namespace, progress: Progress) -> None:
        self.arguments = arguments
        self.progress = progress
        self.out = Path(arguments.out)
        self.work = self.out / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        wanted = arguments.device
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)
        name = arguments.size if arguments.size != "auto" else ("full" if self.device.type == "cuda" else "small")
        self.size = SIZES[name]
        self.autocast = None if arguments.float32 else torch.bfloat16
        self.shares = SHARES_ON if arguments.start else SHARES
        self.facts: dict[str, Any] = self._kept() or {
            "size": name,
            "seed": arguments.seed,
            "device": self.device.type,
            "window": self.size.window,
            "start": None if arguments.start is None else arguments.start.name,
        }

    def all(self) -> None:
        for stage in STAGES[: STAGES.index(self.arguments.until) + 1]:
            began = time.perf_counter()
            if getattr(self, stage)():
                self.facts.setdefault("seconds", {})[stage] = round(time.perf_counter() - began, 1)
                self._keep()
                self.progress.console.print(f"{stage}: {time.perf_counter() - began:.0f} s")

    # ------------------------------------------------------------------------------------------------------- stages

    def corpus(self) -> bool:
        file = self.work / "documents.jsonl"
        if file.exists() or (self.work / "tokens.npy").exists():
            return False
        arguments = self.arguments
        found = build_corpus(
            arguments.gsm8k, arguments.evaluation, arguments.most, arguments.seed, arguments.workers, arguments.package
        )
        _write_lines(self.work / "functions.jsonl", [asdict(one) for one in found.functions])
        _write_lines(self.work / "school.jsonl", found.school)
        _write_lines(file, [text for _, text in found.documents])
        self.facts["corpus"] = found.facts() | {"evaluation": [path.name for path in arguments.evaluation]}
        return True

    def tokens(self) -> bool:
        if (self.work / "tokens.npy").exists():
            return False
        texts: list[str] = _read_lines(self.work / "documents.jsonl")
        if self.arguments.start is None:
            tokenizer = train_tokenizer(texts[: self.arguments.tokenizer_documents])
        else:
            tokenizer = Tokenizer.from_file(str(self.arguments.start / "target" / "tokenizer.json"))
        write_tokenizer(tokenizer, self.work / "tokenizer", self.arguments.start)
        held_out = max(1, len(texts) // 100)
        arrays = []
        for part in (texts[held_out:], texts[:held_out]):
            arrays.append(encode(tokenizer, part, self._bar("tokens")))
        np.save(self.work / "validation.npy", arrays[1])
        np.save(self.work / "tokens.npy", arrays[0])
        self.facts["tokens"] = {"training": len(arrays[0]), "validation": len(arrays[1])}
        return True

    def target(self) -> bool:
        """The target before its lessons, in work/target."""
        out = self.work / "target"
        if (out / "config.json").exists():
            return False
        if self.arguments.start is not None:
            module = read_module(self.arguments.start / "target", torch.float32, self.device)
        else:
            module = new_llama(self.size.target, self.arguments.seed).to(self.device)
            trainer = self._train("target", module, learner, {"text": 1.0}, 1e-3, True, self._windows())
            self._say("target", module, trainer)
        self._write(module, out)
        return True

    def lessons(self) -> bool:
        out = self.work / "taught"
        if (out / "config.json").exists():
            return False
        module = read_module(self.work / "target", torch.float32, self.device)
        batches = Batches(self._lessons().epochs(3, self.arguments.seed), self.size.batch, 400, self.arguments.seed)
        trainer = self._train("lessons", module, learner, {"text": 1.0}, self.arguments.rate, False, batches)
        self._say("lessons", module, trainer)
        self._write(module, out)
        return True

    def refine(self) -> bool:
        if (self._refined / "config.json").exists():
            return False
        before = self.work / "taught"
        for number in range(self.arguments.rounds):
            out = self.work / f"refined-{number}"
            if not (out / "config.json").exists():
                self._refine(before, number, out)
            before = out
        return True

    @property
    def _refined(self) -> Path:
        """The target behind its last round."""
        return self.work / (f"refined-{self.arguments.rounds - 1}" if self.arguments.rounds else "taught")

    def _refine(self, before: Path, number: int, out: Path) -> None:
        """One round: the target answers, learns from its answers, and is made sharper."""
        arguments, lessons = self.arguments, self._lessons()
        seed = arguments.seed + 101 * (number + 1)
        module = read_module(before, torch.float32, self.device)
        writer, tokenizer = Writer(copy.deepcopy(module).to(torch.bfloat16)), self._tokenizer()
        asked = lessons.prompts(arguments.answers, seed)
        every = [one.prompt for one in asked for _ in range(arguments.samples)]
        texts = writer.write(every, 160, 0.8, seed, progress=self._count("answers"))
        groups = [
            [(one.prompt, text) for text in texts[place * arguments.samples : (place + 1) * arguments.samples]
             if is_good(tokenizer, one.prompt, text, one.kind != "school")]
            for place, one in enumerate(asked)
        ]  # fmt: skip
        kept = [one.example for one in best_answers(module, groups)]
        heads = [one.prompt for one in asked if one.kind != "school"][:: max(1, len(asked) // arguments.endless)]
        endless = [
            pair
            for temperature in (0.0, 0.8, 1.0)
            for pair in zip(heads, writer.write(heads, 112, temperature, seed + 7, end="forbid"), strict=True)
        ]
        kept += good_beginnings(tokenizer, endless)
        anchor = [one.answered for one in lessons.prompts(max(self.size.batch, len(kept) // 2), seed + 1)]
        batches = alternate(
            Batches([*kept, *anchor], self.size.batch, 400, seed), Loops(endless, self.size.batch, 400, seed)
        )
        trainer = self._train("refine", module, Refiner, {"text": 1.0}, arguments.rate / 2, False, batches, number)
        if number:  # by then there is little to gain and a distribution to lose
            blend(module, read_module(before, torch.float32, self.device), arguments.blend)
        sharpen(module, arguments.sharpen)
        facts = {"asked": len(asked), "kept": len(kept), "loops": len(endless), "steps": trainer.step}
        self.facts.setdefault("refine", []).append(facts)
        self._write(module, out)

    def text(self) -> bool:
        file = self.work / "target-text.jsonl"
        if file.exists():
            return False
        writer = Writer(self._read_target())
        found: list[OwnText] = []
        for number, (end, temperature, share) in enumerate(OWN_TEXT):
            seed = self.arguments.seed + 17 * (number + 1)
            heads = [one.prompt for one in self._lessons().prompts(round(share * self.arguments.texts), seed)]
            texts = writer.write(heads, 112, temperature, seed, end=end, progress=self._count(f"text {number}"))
            found += [OwnText(head, tuple(text), end != "forbid") for head, text in zip(heads, texts, strict=True)]
        _write_lines(file, [asdict(one) for one in found])
        self.facts["text"] = {"texts": len(found), "tokens": sum(len(one.tokens) for one in found)}
        return True

    def draft(self) -> bool:
        out = self.work / "followed"
        if (out / "config.json").exists():
            return False
        target, arguments = self._read_target(), self.arguments
        if arguments.start is None:
            module = new_llama(self.size.draft, arguments.seed + 1).to(self.device)
        else:
            module = deepened(
                read_module(arguments.start / "draft", torch.float32, self.device), self.size.draft.layers
            )
        batches = self._own_batches(arguments.seed)
        loss, fresh = parse_loss(arguments.draft_loss), arguments.start is None
        make = partial(Follower, target)
        trainer = self._train("draft", module, make, loss, 1e-3 if fresh else arguments.rate, fresh, batches)
        self._say("draft", module, trainer)
        self._write(module, out)
        return True

    def meet(self) -> bool:
        if (self.out / "draft" / "config.json").exists():
            return False
        before = self._read_target()
        target = read_module(self._refined, torch.float32, self.device)
        draft = read_module(self.work / "followed", torch.float32, self.device)

        def make(pair: Pair, plan: Plan) -> Meeting:
            return Meeting(before, pair.target, pair.draft, plan)

        self.facts["before"] = validation_losses(before, None, self._held_out())
        seed = self.arguments.seed + 1
        endless = [(one.prompt, one.tokens) for one in self._own_texts() if not one.ends]
        batches = alternate(self._own_batches(seed), Loops(endless, self.size.batch, 400, seed))
        trainer = self._train("meet", Pair(target, draft), make, {"noise": 1.0}, self.arguments.rate, False, batches)
        self._say("meet", trainer.draft, trainer)
        self.facts["trained"]["meet"]["loops"] = len(endless)
        for module in (target, draft):
            sharpen(module, self.arguments.meet_sharpen)
        self._finish("target", target, None)
        self._finish("draft", draft, target)
        return True

    def card(self) -> bool:
        prompts = [row["prompt"] for row in _read_lines(self.arguments.prompts)][: self.arguments.card_prompts]
        write_card(self.out, self.facts, prompts, self.arguments.new_tokens, self._bar)
        return True

    # ------------------------------------------------------------------------------------------------------- pieces

    def _train(
        self,
        name: str,
        module: Any,
        make: Callable[[Any, Plan], Trainer],
        loss: dict[str, float],
        rate: float,
        muon: bool,
        batches: Callable[[int], Batch],
        number: int = 0,
    ) -> Trainer:
        """Trains for the steps given, or for as many as fit into the stage's share of the minutes."""
        plan = Plan(10**9, rate, loss, muon, self.autocast, self.arguments.micro_batch, decay=0.8)
        steps = getattr(self.arguments, f"{name}_steps") or self.facts.get("steps", {}).get(name)
        if steps is None:
            # A trial on a copy: the steps that are counted must be those of a run whose number was given.
            state = {key: value.clone() for key, value in module.state_dict().items()}
            seconds = seconds_of_a_step(make(module, plan), batches, self.device)
            module.load_state_dict(state)
            share = self.shares[name] / (self.arguments.rounds if name == "refine" else 1)
            epoch = self.facts["tokens"]["training"] / (self.size.batch * self.size.window)
            steps = max(10, min(int(60 * self.arguments.minutes * share / seconds), int(MOST_EPOCHS * epoch)))
            self.facts.setdefault("steps", {})[name] = steps
            self._keep()
        trainer = make(module, replace(plan, steps=steps))
        checkpoint = self.work / f"{name}-{number}-{steps}.pt"
        if checkpoint.exists():
            trainer.load(checkpoint)
        tell = self._bar(name)
        trainer.run(batches, steps, lambda step, value: tell(step, steps, f"loss {value:.3f}"), checkpoint, 200)
        return trainer

    def _say(self, name: str, module: Any, trainer: Trainer) -> None:
        """Notes how a stage trained."""
        self.facts.setdefault("trained", {})[name] = {
            "steps": trainer.step,
            "batch": self.size.batch,
            "loss": mean_of_last(trainer.losses),
            "parameters": sum(p.numel() for p in module.parameters()),
        }

    def _finish(self, name: str, module: Any, target: Any | None) -> None:
        """Writes a model of the pair, and notes its size and its losses on what was set aside."""
        tokens = np.load(self.work / "validation.npy")
        window = min(self.size.window, len(tokens))
        whole = len(tokens) // window
        rows = np.linspace(0, whole - 1, min(512, whole)).round().astype(int)
        text_BL = torch.from_numpy(tokens[: whole * window].reshape(whole, window)[rows].astype(np.int64))
        self.facts[name] = {
            **asdict(sizes_of(module)),
            "parameters": sum(p.numel() for p in module.parameters()),
            "validation": validation_losses(module, target, text_BL),
            "lessons": validation_losses(module, target, self._held_out()),
        }
        if name == "draft":
            module.config.max_position_embeddings = LEARNED
        self._write(module, self.out / name)
        for file in self.work.glob("*.pt"):
            file.unlink()

    def _write(self, module: Any, out: Path) -> None:
        part = self.work / f"{out.name}-part"
        shutil.rmtree(part, ignore_errors=True)
        write_module(module, part, torch.bfloat16, self.work / "tokenizer")
        shutil.rmtree(out, ignore_errors=True)
        part.replace(out)

    def _read_target(self) -> Any:
        """The target that writes and that the draft follows."""
        return read_module(self._refined, torch.bfloat16, self.device).requires_grad_(False)

    def _own_texts(self) -> list[OwnText]:
        rows = _read_lines(self.work / "target-text.jsonl")
        return [OwnText(tuple(row["prompt"]), tuple(row["tokens"]), row["ends"]) for row in rows]

    def _own_batches(self, seed: int) -> Callable[[int], Batch]:
        texts = self._own_texts()
        others = [one.answered for one in self._lessons().prompts(len(texts) // 8, self.arguments.seed)]
        return own_batches(texts, others, self.size.batch, 400, seed)

    def _held_out(self) -> torch.Tensor:
        """Short functions that were set aside, filled up with 0, [B, L]."""
        lessons = [one.example for one in self._lessons().held_out]
        return Batches(lessons, len(lessons), 400, 0)(0).ids_BL

    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.work / "tokenizer" / "tokenizer.json"))

    def _lessons(self) -> Lessons:
        functions = [Function(**row) for row in _read_lines(self.work / "functions.jsonl")]
        return Lessons.split(lessons_of(self._tokenizer(), functions, _read_lines(self.work / "school.jsonl")))

    def _windows(self) -> Windows:
        tokens = np.load(self.work / "tokens.npy")
        return Windows(tokens, self.size.window, self.size.batch, self.arguments.seed, self.device)

    def _bar(self, name: str) -> Callable[[int, int, str], None]:
        task = self.progress.add_task(name, note="")
        return lambda done, total, note: self.progress.update(task, completed=done, total=total, note=note)

    def _count(self, name: str) -> Callable[[int, int], None]:
        tell = self._bar(name)
        return lambda done, total: tell(done, total, "")

    def _keep(self) -> None:
        (self.work / "facts.json").write_text(json.dumps(self.facts, indent=1), encoding="utf-8")

    def _kept(self) -> dict[str, Any] | None:
        file = self.work / "facts.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def learner(module: Any, plan: Plan) -> Trainer:
    """What learns text alone."""
    return Trainer(module, None, plan)


def _write_lines(path: Path, rows: Sequence[Any]) -> None:
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    part.replace(path)


def _read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", required=True, help="directory for the pair; given again, an interrupted run goes on there")
    add("--minutes", type=float, default=25.0, help="for training, sampling and the card; the corpus comes on top")
    add("--device", default="auto")
    add("--size", choices=["auto", *SIZES], default="auto", help="full on CUDA, else small")
    add("--gsm8k", type=Path, help="GSM8K's training part, as JSON lines with question and answer")
    add("--evaluation", type=Path, nargs="*", default=[DATA / "humaneval.jsonl"],
        help="JSON lines whose prompts and solutions must not be in the corpus")  # fmt: skip
    add("--prompts", type=Path, default=DATA / "humaneval.jsonl", help="held-out prompts for the card")
    add("--card-prompts", type=int, default=24)
    add("--new-tokens", type=int, default=96, help="of each completion in the card")
    add("--start", type=Path, help="go on from this pair: a directory with target/ and draft/")
    add("--package", action="append", default=[], help="take text of this source alone; repeatable")
    add("--most", type=int, default=8_000_000, help="characters of one source at most")
    add("--tokenizer-documents", type=int, default=20_000, help="documents that the tokenizer is trained on")
    add("--workers", type=int, default=default_workers(), help="processes that read the corpus")
    for stage in ("target", "lessons", "refine", "draft", "meet"):
        add(f"--{stage}-steps", type=int, help="in place of what the minutes allow")
    add("--rate", type=float, default=6e-4, help="peak learning rate of what goes on from trained weights")
    add("--rounds", type=int, default=2, help="in which the target learns from its own answers")
    add("--answers", type=int, default=2000, help="prompts that it answers in a round")
    add("--samples", type=int, default=3, help="answers to each")
    add("--endless", type=int, default=200, help="prompts that it answers in a round without an end, to see it loop")
    add("--sharpen", type=float, default=0.7, help="temperature whose distribution the target's own becomes in a round")
    add("--blend", type=float, default=0.4, help="share of the new weights behind a round that is not the first")
    add("--meet-sharpen", type=float, default=0.95, help="the same for both behind their meeting, which blurs them")
    add("--texts", type=int, default=6000, help="of the target for the draft to learn from")
    add("--draft-loss", default="forward_kl=0.5,tv=2")
    add("--micro-batch", type=int)
    add("--float32", action="store_true", help="train in float32, not in bfloat16 autocast")
    add("--until", choices=STAGES, default="card", help="stop behind this stage")
    add("--seed", type=int, default=0)
    found = parser.parse_args(words)
    for path in (found.gsm8k, *found.evaluation, found.prompts):
        if path is not None and not path.is_file():
            parser.error(f"no such file: {path}")
    return found


def main() -> None:
    arguments = parse_arguments()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, TextColumn("{task.fields[note]}")) as progress:
        Run(arguments, progress).all()
    print(f"{arguments.out}: target/, draft/, README.md")


if __name__ == "__main__":
    main()
