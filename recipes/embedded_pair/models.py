"""The pair's models and tokenizer: made, deepened, and judged on text that was set aside.

Tensor names: B sequences, L tokens, E hidden, N learned rows, V vocabulary.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from ouroboros.training.examples import Batch
from ouroboros.training.modules import Sizes
from ouroboros.training.trainer import Trainer

VOCAB, END, POSITIONS = 8192, "<|endoftext|>", 2048
LEARNED = 384  # positions that training fills: what the draft calls its context, so that of long texts it reads the end
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}Answer: {{ message['content'] }}\n"
    "<|endoftext|>{% elif message['role'] == 'user' %}Question: {{ message['content'] }}\n{% else %}"
    "{{ message['content'] }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
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
    "small": Size(Sizes(256, 6, 4, 704), Sizes(160, 5, 5, 432), 16, 256),  # 6.9 M and 2.9 M: a CPU, an hour or two
    "tiny": Size(Sizes(64, 2, 2, 160), Sizes(32, 1, 1, 96), 8, 128),  # to try the stages
}


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


def write_tokenizer(tokenizer: Tokenizer, out: Path, start: Path | None) -> None:
    """Writes what lies beside a checkpoint; that of the pair ``start``, where there is one."""
    out.mkdir(exist_ok=True)
    if start is not None:
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(start / "target" / name, out / name)
        return
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


def sizes_of(module: Any) -> Sizes:
    config = module.config
    return Sizes(config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)


def deepened(module: Any, layers: int) -> Any:
    """A copy of a Llama with more layers that computes the same: behind the first ones stand copies of them whose
    output matrices are zero, so that training begins where the module is (after Chen et al. 2016, Net2Net).

    Raises:
        ValueError: fewer layers, or more than twice as many.
    """
    config = copy.deepcopy(module.config)
    more = layers - config.num_hidden_layers
    if not 0 <= more <= config.num_hidden_layers:
        raise ValueError(f"layers must be from {config.num_hidden_layers} to twice that, not {layers}")
    origin = [i for i in range(config.num_hidden_layers) for _ in range(2 if i < more else 1)]
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in origin]
    grown = type(module)(config).to(module.device, torch.float32).eval()
    grown.model.embed_tokens.load_state_dict(module.model.embed_tokens.state_dict())
    grown.model.norm.load_state_dict(module.model.norm.state_dict())
    for place, old in enumerate(origin):
        layer = grown.model.layers[place]
        layer.load_state_dict(module.model.layers[old].state_dict())
        if place and origin[place - 1] == old:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
            torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    grown.generation_config = copy.deepcopy(module.generation_config)
    return grown


@torch.no_grad()
def sharpen(module: Any, temperature: float) -> None:
    """Gives a module at temperature 1 the distribution that it had at ``temperature``."""
    module.model.norm.weight.div_(temperature)


@torch.no_grad()
def blend(module: Any, before: Any, share: float) -> None:
    """Keeps a share of what a module's weights became since they were those of ``before`` (Wortsman et al. 2022)."""
    for now, then in zip(module.parameters(), before.parameters(), strict=True):
        now.copy_(then.lerp(now, share))


def head_rows(module: Any, ids_BL: Tensor, learned_BL: Tensor) -> Tensor:
    """Logits of the learned rows alone, [N, V]: the output matrix is the larger part of a small model."""
    hidden_BLE = module.model(input_ids=ids_BL, use_cache=False).last_hidden_state
    logits: Tensor = module.lm_head(hidden_BLE[learned_BL])
    return logits


def seconds_of_a_step(trainer: Trainer, batches: Callable[[int], Batch], device: torch.device, trial: int = 6) -> float:
    """Measured on a few steps, the first two left out."""
    trainer.run(batches, 2)
    began = time.perf_counter()
    trainer.run(batches, 2 + trial)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / trial


@torch.inference_mode()
def validation_losses(module: Any, target: Any | None, ids_BL: Tensor) -> dict[str, float]:
    """Nats a token on texts filled up with 0, and how often a draft's likeliest token is its target's. What lies behind
    a text's first end-of-sequence does not count."""
    device = next(module.parameters()).device
    loss = agreed = count = 0.0
    for part_BL in ids_BL.split(8):
        ids = part_BL.to(device)
        next_BL = ids[:, 1:]
        counts_BL = (next_BL == 0).cumsum(1) - (next_BL == 0).long() == 0
        logits = module(input_ids=ids, use_cache=False).logits[:, :-1][counts_BL].float()
        loss += float(torch.nn.functional.cross_entropy(logits, next_BL[counts_BL], reduction="sum"))
        count += float(counts_BL.sum())
        if target is not None:
            theirs = target(input_ids=ids, use_cache=False).logits[:, :-1][counts_BL]
            agreed += float((theirs.argmax(-1) == logits.argmax(-1)).sum())
    found = {"loss": loss / count}
    return found if target is None else found | {"greedy_agreement": agreed / count}


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
