"""transformers' own ``generate`` as a peer: plain, with an assistant model, and with prompt lookup.

The three share one copy of the weights. Attention is what transformers chooses (sdpa). Its three ways of decoding read
the prompt and write their first tokens in one forward, so ``prefill_seconds`` ends when the streamer gets the first of
them; the assistant's reading of the prompt falls into it too.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging
from transformers.utils.import_utils import is_sklearn_available

from ouroboros.bench.peers.base import PeerResult
from ouroboros.errors import LoadError
from ouroboros.models.transformers_config import end_tokens

__all__ = ["GeneratePeer", "Weights"]

ASSISTED, LOOKUP = "transformers-assisted", "transformers-prompt-lookup"
LOOKUP_TOKENS = 10  # as transformers' documentation has it; there is no default


class Weights:
    """The target and, once it is asked for, the draft model; kept until the last peer over them is closed."""

    def __init__(self, target: Path, draft: Path | None, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.paths = {"target": target, "draft": draft}
        self.modules: dict[str, Any] = {}
        self.end: tuple[int, ...] = ()  # the target's end-of-text tokens
        self.users = 0

    def get(self, role: str) -> Any:
        """
        Raises:
            LoadError: transformers cannot load it.
        """
        if role not in self.modules:
            module = _load(self.paths[role], self.dtype, self.device)
            if role == "target":
                self.end = tuple(sorted(end_tokens(module)))
            module.generation_config = transformers.GenerationConfig()  # a checkpoint's own sampling defaults go
            self.modules[role] = module
        return self.modules[role]

    def leave(self) -> None:
        self.users -= 1
        if self.users == 0:
            self.modules.clear()


class GeneratePeer:
    """One way of decoding; ``draft_tokens``: how many a step proposes, None for transformers' own default."""

    def __init__(self, name: str, weights: Weights, draft_tokens: int | None = None) -> None:
        """
        Raises:
            LoadError: a model cannot be loaded, or the assistant has another vocabulary.
        """
        self.name = name
        target = weights.get("target")
        self._more: dict[str, Any] = {}
        own: dict[str, object] = {}
        if name == ASSISTED:
            draft = weights.get("draft")
            sizes = [module.config.get_text_config().vocab_size for module in (target, draft)]
            if sizes[0] != sizes[1]:
                raise LoadError(f"generate takes an assistant with as many tokens: it has {sizes[1]}, not {sizes[0]}")
            draft.generation_config.num_assistant_tokens = draft_tokens
            self._more = {"assistant_model": draft}
            own["num_assistant_tokens"] = draft_tokens or "default"
            own["confidence_threshold_adapts"] = is_sklearn_available()
        elif name == LOOKUP:
            self._more = {"prompt_lookup_num_tokens": draft_tokens or LOOKUP_TOKENS}
            own |= self._more
        dtype = str(weights.dtype).removeprefix("torch.")
        attention = target.config._attn_implementation
        self.settings = {"transformers": transformers.__version__, "dtype": dtype, "attention": attention, **own}
        self._end = weights.end
        self._weights: Weights | None = weights
        weights.users += 1

    def generate(
        self, prompt_ids: Sequence[int], new_tokens: int, *, temperature: float, seed: int, ignore_eos: bool
    ) -> PeerResult:
        assert self._weights is not None, "the peer is closed"
        module, device = self._weights.get("target"), self._weights.device
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature:
            sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        prompt = torch.tensor([list(prompt_ids)], device=device)
        clock = _Clock()
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), _quiet():
            torch.manual_seed(seed)
            start = time.perf_counter()
            written = module.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=new_tokens,
                eos_token_id=None if ignore_eos or not self._end else list(self._end),
                pad_token_id=self._end[0] if self._end else 0,
                streamer=clock,
                **sampling,
                **self._more,
            )
            tokens = tuple(written[0, len(prompt_ids) :].tolist())
            done = time.perf_counter()
        return PeerResult(tokens, clock.first - start, done - clock.first, len(tokens) - clock.count)

    def close(self) -> None:
        if self._weights is not None:
            self._more.clear()
            self._weights.leave()
            self._weights = None


class _Clock(BaseStreamer):
    """When the first tokens behind the prompt came, and how many. They come as CPU tensors: the device is done."""

    def __init__(self) -> None:
        self.puts = 0
        self.first, self.count = 0.0, 0

    def put(self, value: torch.Tensor) -> None:
        self.puts += 1
        if self.puts == 2:  # the prompt is the first
            self.first, self.count = time.perf_counter(), value.numel()

    def end(self) -> None:
        pass


def _load(path: Path | None, dtype: torch.dtype, device: torch.device) -> Any:
    if path is None:
        raise LoadError("needs a draft model, and there is none")
    try:
        with _quiet():
            module: Any = transformers.AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, trust_remote_code=False, use_safetensors=True, local_files_only=True
            )
        module.to(device).eval()
    except Exception as error:  # transformers raises dozens of unrelated types
        raise LoadError(f"transformers cannot load {str(path)!r}: {_one_line(error)}") from error
    return module


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers writes nothing to the terminal meanwhile."""
    shows, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows:
            logging.enable_progress_bar()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
