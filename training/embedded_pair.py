"""Makes the embedded pair: a small target model of Python code, and a draft model that is distilled for it.

    python training/embedded_pair.py --out DIR [--minutes M] [--device cuda] [--gsm8k FILE]

Stages, each of which leaves files by which it is skipped when the command is given again:

    corpus   Python source of this machine under permissive licences, and GSM8K's training part (pair_corpus.py)
    tokens   a byte-level BPE of 8,192 tokens; every document encoded, with an end-of-sequence behind it
    target   a Llama trained on random windows of the tokens
    text     the target's own text, sampled in large batches
    draft    a smaller Llama, distilled from the target on the corpus and on the target's text
    card     the figures of the pair, on prompts that were not in the corpus (pair_card.py)

The number of steps is what the minutes allow, measured on the first steps; --target-steps and --draft-steps fix it, and
so make a run repeatable. All is drawn from --seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ouroboros.training.examples import Batch
from ouroboros.training.modules import Sizes, read_module, write_module
from ouroboros.training.settings import parse_loss
from ouroboros.training.trainer import Plan, Trainer, mean_of_last, pick_autocast

sys.path.insert(0, str(Path(__file__).parent))
from pair_card import write_card
from pair_corpus import build_corpus, default_workers

DATA = Path(__file__).parents[1] / "benchmarks" / "data"
VOCAB, END, POSITIONS = 8192, "<|endoftext|>", 2048
STAGES = ("corpus", "tokens", "target", "text", "draft", "card")
SHARES = {"target": 0.62, "text": 0.08, "draft": 0.22}  # of the minutes; what is left is for the card
MOST_EPOCHS = 24
MIX = 0.5  # share of the target's own text in the draft's batches
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}Answer: {{ message['content'] }}\n"
    "<|endoftext|>{% elif message['role'] == 'user' %}Question: {{ message['content'] }}\n{% else %}"
    "{{ message['content'] }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}Answer: {% endif %}"
)


@dataclass(frozen=True)
class Size:
    """A pair's sizes, and how it is trained: sequences a step, tokens of a window."""

    target: Sizes
    draft: Sizes
    batch: int
    window: int


SIZES = {
    "full": Size(Sizes(384, 8, 6, 1024), Sizes(192, 3, 6, 512), 128, 512),  # 17.3 M and 2.9 M
    "small": Size(Sizes(256, 6, 4, 704), Sizes(160, 3, 5, 432), 16, 256),  # 6.9 M and 2.2 M: a CPU, an hour or two
    "tiny": Size(Sizes(64, 2, 2, 160), Sizes(32, 1, 1, 96), 8, 128),  # to try the stages
}


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
        self.facts: dict[str, Any] = self._kept() or {
            "size": name,
            "seed": arguments.seed,
            "device": self.device.type,
            "window": self.size.window,
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
        part = file.with_suffix(".part")
        with part.open("w", encoding="utf-8") as lines:
            for _, text in found.documents:
                lines.write(json.dumps(text) + "\n")
        part.replace(file)
        self.facts["corpus"] = found.facts() | {"evaluation": [path.name for path in arguments.evaluation]}
        return True

    def tokens(self) -> bool:
        if (self.work / "tokens.npy").exists():
            return False
        lines = (self.work / "documents.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
        texts: list[str] = [json.loads(line) for line in lines]
        tokenizer = train_tokenizer(texts[: self.arguments.tokenizer_documents])
        write_tokenizer(tokenizer, self.work / "tokenizer")
        held_out = max(1, len(texts) // 100)
        arrays = []
        for part in (texts[held_out:], texts[:held_out]):
            arrays.append(encode(tokenizer, part, self._bar("tokens")))
        np.save(self.work / "validation.npy", arrays[1])
        np.save(self.work / "tokens.npy", arrays[0])
        self.facts["tokens"] = {"training": len(arrays[0]), "validation": len(arrays[1])}
        return True

    def target(self) -> bool:
        if (self.out / "target" / "config.json").exists():
            return False
        windows = self._windows()
        module = new_llama(self.size.target, self.arguments.seed).to(self.device)
        trainer, steps = self._train("target", module, None, {"text": 1.0}, 1e-3, windows, self.arguments.target_steps)
        self._finish("target", module, trainer, steps, None)
        return True

    def text(self) -> bool:
        file = self.work / "target-text.npy"
        if file.exists():
            return False
        target = self._read_target()
        np.save(file, self._sample(target, 60 * self.arguments.minutes * SHARES["text"]))
        return True

    def draft(self) -> bool:
        if (self.out / "draft" / "config.json").exists():
            return False
        target = self._read_target()
        own = OwnText(np.load(self.work / "target-text.npy"), self.size.batch, self.arguments.seed, self.device)
        windows, every = self._windows(), max(1, round(1 / MIX))

        def batches(step: int) -> Batch:
            return own(step) if step % every == 0 else windows(step)

        module = new_llama(self.size.draft, self.arguments.seed + 1).to(self.device)
        loss = parse_loss(self.arguments.draft_loss)
        trainer, steps = self._train("draft", module, target, loss, 1e-3, batches, self.arguments.draft_steps)
        self._finish("draft", module, trainer, steps, target)
        return True

    def card(self) -> bool:
        prompts = [
            json.loads(line)["prompt"]
            for line in self.arguments.prompts.read_text(encoding="utf-8").rstrip("\n").split("\n")
        ]
        write_card(self.out, self.facts, prompts[: self.arguments.card_prompts], self.arguments.new_tokens, self._bar)
        return True

    # ------------------------------------------------------------------------------------------------------- pieces

    def _train(
        self,
        name: str,
        module: Any,
        target: Any | None,
        loss: dict[str, float],
        rate: float,
        batches: Callable[[int], Batch],
        steps: int | None,
    ) -> tuple[Trainer, int]:
        """Trains for so many steps, or for as many as fit into the stage's share of the minutes."""
        autocast = pick_autocast("auto", self.device)
        plan = Plan(10**9, rate, loss, muon=True, autocast=autocast, micro_batch=self.arguments.micro_batch, decay=0.6)
        forward = torch.compile(module) if self.arguments.compile else module
        steps = steps or self.facts.get("steps", {}).get(name)  # an interrupted run goes on with as many
        if steps is None:
            # A trial on a copy: the steps that are counted must be those of a run whose number was given.
            state = {key: value.clone() for key, value in module.state_dict().items()}
            seconds = seconds_of_a_step(Trainer(module, target, plan, forward), batches, self.device)
            module.load_state_dict(state)
            epoch = self.facts["tokens"]["training"] / (self.size.batch * self.size.window)
            steps = max(10, min(int(60 * self.arguments.minutes * SHARES[name] / seconds), int(MOST_EPOCHS * epoch)))
            self.facts.setdefault("steps", {})[name] = steps
            self._keep()
        plan = Plan(steps, rate, loss, plan.muon, autocast, plan.micro_batch, plan.decay)
        trainer = Trainer(module, target, plan, forward)
        checkpoint = self.work / f"{name}-{steps}.pt"
        if checkpoint.exists():
            trainer.load(checkpoint)
        tell = self._bar(name)
        trainer.run(batches, steps, lambda step, value: tell(step, steps, f"loss {value:.3f}"), checkpoint, 1000)
        return trainer, steps

    def _finish(self, name: str, module: Any, trainer: Trainer, steps: int, target: Any | None) -> None:
        self.facts[name] = {
            **asdict(self.size.target if name == "target" else self.size.draft),
            "parameters": sum(p.numel() for p in module.parameters()),
            "steps": steps,
            "tokens": steps * self.size.batch * self.size.window,
            "training_loss": mean_of_last(trainer.losses),
            "validation": validation_losses(module, target, np.load(self.work / "validation.npy"), self.size.window),
        }
        part = self.work / f"{name}-part"
        write_module(module, part, torch.bfloat16, self.work / "tokenizer")
        shutil.rmtree(self.out / name, ignore_errors=True)
        part.replace(self.out / name)
        for file in self.work.glob(f"{name}-*.pt"):
            file.unlink()

    def _read_target(self) -> Any:
        kind = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        return read_module(self.out / "target", kind, self.device).requires_grad_(False)

    @torch.inference_mode()
    def _sample(self, target: Any, seconds: float) -> np.ndarray[Any, Any]:
        """Texts [S, window] of the target: beginnings of the corpus, gone on with at temperature 1; ends filled up with
        the end-of-sequence. As many as the seconds allow, one batch at least."""
        size, window = self.size.batch * (8 if self.device.type == "cuda" else 1), self.size.window
        prefix = window // 16
        starts = self._windows(window=prefix, batch=size, seed=self.arguments.seed + 2)
        torch.manual_seed(self.arguments.seed)
        found: list[Any] = []
        began = time.perf_counter()
        tell = self._bar("text")
        most = self.arguments.text_batches
        while not found or (time.perf_counter() - began < seconds if most is None else len(found) < most):
            ids = starts(len(found)).ids_BL.to(self.device)
            settings = transformers.GenerationConfig(
                do_sample=True, top_k=0, max_new_tokens=window - ids.shape[1], eos_token_id=0, pad_token_id=0
            )
            made = target.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            filled = torch.zeros(size, window, dtype=torch.long)
            filled[:, : made.shape[1]] = made.cpu()
            found.append(filled.numpy().astype(np.uint16))
            tell(len(found) * size, len(found) * size, f"{time.perf_counter() - began:.0f} of {seconds:.0f} s")
        self.facts["text"] = {"texts": len(found) * size, "batches": len(found)}
        return np.concatenate(found)

    def _windows(self, window: int | None = None, batch: int | None = None, seed: int | None = None) -> Windows:
        tokens = np.load(self.work / "tokens.npy")
        sizes = window or self.size.window, batch or self.size.batch
        return Windows(tokens, *sizes, self.arguments.seed if seed is None else seed, self.device)

    def _bar(self, name: str) -> Callable[[int, int, str], None]:
        task = self.progress.add_task(name, note="")
        return lambda done, total, note: self.progress.update(task, completed=done, total=total, note=note)

    def _keep(self) -> None:
        (self.work / "facts.json").write_text(json.dumps(self.facts, indent=1), encoding="utf-8")

    def _kept(self) -> dict[str, Any] | None:
        file = self.work / "facts.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


# ----------------------------------------------------------------------------------------------------------- data


class Windows:
    """Batches of random windows of a long text, on the device; a step's batch depends on seed and step alone."""

    def __init__(self, tokens: Any, window: int, batch: int, seed: int, device: torch.device) -> None:
        self._tokens = torch.from_numpy(tokens.astype(np.int32)).to(device)
        self._window, self._batch, self._seed = min(window, len(tokens)), batch, seed
        self._learned_BL = torch.ones(batch, self._window, dtype=torch.bool)
        self._learned_BL[:, -1] = False

    def __call__(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        last = len(self._tokens) - self._window
        starts = torch.randint(last + 1, (self._batch, 1), generator=generator).to(self._tokens.device)
        places = starts + torch.arange(self._window, device=self._tokens.device)
        return Batch(self._tokens[places].long(), self._learned_BL)


class OwnText:
    """Batches of the target's texts, each learned up to its end-of-sequence."""

    def __init__(self, texts: Any, batch: int, seed: int, device: torch.device) -> None:
        self._texts = torch.from_numpy(texts.astype(np.int32)).long()
        self._batch, self._seed, self._device = min(batch, len(texts)), seed, device

    def __call__(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        rows = torch.randint(len(self._texts), (self._batch,), generator=generator)
        ids_BL = self._texts[rows]
        prefix = ids_BL.shape[1] // 16
        ended_BL = (ids_BL[:, prefix:] == 0).cumsum(1) > 0
        learned_BL = torch.ones_like(ids_BL, dtype=torch.bool)
        learned_BL[:, prefix:] = ~ended_BL
        learned_BL[:, -1] = False
        return Batch(ids_BL, learned_BL)


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Byte-level BPE; digits stand alone, so that numbers are alike."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str], tell: Callable[[int, int, str], None]) -> Any:
    """All texts as one array of uint16, an end-of-sequence behind each; some at a time, since encodings are large."""
    found = []
    for start in range(0, len(texts), 1000):
        for encoding in tokenizer.encode_batch(texts[start : start + 1000]):
            found.append(np.array([*encoding.ids, 0], dtype=np.uint16))
        tell(min(start + 1000, len(texts)), len(texts), "")
    return np.concatenate(found)


def write_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    out.mkdir(exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "bos_token": END,
        "model_max_length": POSITIONS,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (out / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


# --------------------------------------------------------------------------------------------------------- models


def new_llama(sizes: Sizes, seed: int) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.inner,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        rms_norm_eps=1e-5,
    )
    return transformers.LlamaForCausalLM(config).eval()


def seconds_of_a_step(trainer: Trainer, batches: Callable[[int], Batch], device: torch.device, trial: int = 6) -> float:
    """Measured on a few steps, the first two left out."""
    trainer.run(batches, 2)
    began = time.perf_counter()
    trainer.run(batches, 2 + trial)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / trial


@torch.inference_mode()
def validation_losses(module: Any, target: Any | None, tokens: Any, window: int) -> dict[str, float]:
    """Nats a token on text that was set aside, and how often a draft's likeliest token is its target's."""
    device = next(module.parameters()).device
    whole = len(tokens) // window
    rows = np.linspace(0, whole - 1, min(512, whole)).round().astype(int)
    ids = torch.from_numpy(tokens[: whole * window].reshape(whole, window)[rows].astype(np.int64))
    loss = agreed = count = 0.0
    for part in ids.split(8):
        part = part.to(device)
        logits = module(input_ids=part, use_cache=False).logits[:, :-1].float()
        loss += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
        count += part[:, 1:].numel()
        if target is not None:
            theirs = target(input_ids=part, use_cache=False).logits[:, :-1]
            agreed += float((theirs.argmax(-1) == logits.argmax(-1)).sum())
    found = {"loss": loss / count}
    return found if target is None else found | {"greedy_agreement": agreed / count}


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
    add("--new-tokens", type=int, default=256, help="of each completion in the card")
    add("--package", action="append", default=[], help="take text of this source alone; repeatable")
    add("--most", type=int, default=8_000_000, help="characters of one source at most")
    add("--tokenizer-documents", type=int, default=20_000, help="documents that the tokenizer is trained on")
    add("--workers", type=int, default=default_workers(), help="processes that read the corpus")
    add("--target-steps", type=int, help="in place of what the minutes allow")
    add("--draft-steps", type=int)
    add("--text-batches", type=int)
    add("--draft-loss", default="forward_kl=0.5,tv=2")
    add("--micro-batch", type=int)
    add("--compile", action="store_true", help="torch.compile the models")
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
