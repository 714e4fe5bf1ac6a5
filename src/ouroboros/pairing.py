"""``load``: from names to a Decoder, with every check that a pair of models needs."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ouroboros.config import METHODS, MethodOptions, options_for
from ouroboros.control.tuned import load_tuned, tuned_path
from ouroboros.drafting.factory import NEEDS_DRAFT, USES_POOL
from ouroboros.errors import InputError, LoadError
from ouroboros.generate import Decoder, fingerprint
from ouroboros.models.base import CausalModel
from ouroboros.models.translated import TranslatedModel
from ouroboros.opening import Placement, name_of, open_draft, open_model, use_threads
from ouroboros.phrases.lock import PoolLock
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.pool import PhrasePool
from ouroboros.phrases.storage import load_pool
from ouroboros.text import Tokenizer
from ouroboros.translation import translate

__all__ = ["EMBEDDED", "load"]

EMBEDDED = Path(__file__).parent / "embedded"
# What a target alone is decoded by: of the methods that need no draft model the fastest over nine tasks, greedy and
# sampled, with what it remembers (benchmarks/bench.md).
WITHOUT_DRAFT = "suffix_decoding"

_LOGGER = logging.getLogger("ouroboros")


def load(
    target: Any = None,
    draft: Any = None,
    tokenizer: Any = None,
    method: str = "ouroboros",
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    pool: PhrasePool | str | os.PathLike[str] | bool | None = None,
    options: MethodOptions | Mapping[str, Any] | None = None,
    revision: str | None = None,
    token: str | None = None,
    *,
    pool_read_only: bool = False,
    backend: str = "auto",
    device_map: Any = None,
    engine: str = "auto",
    draft_dtype: str | torch.dtype = "auto",
    threads: int | None = None,
) -> Decoder:
    """Loads a target model and, where the method needs one, a draft model.

    Args:
        target, draft: a directory in Hugging Face layout, a GGUF file, a hub id (of a GGUF file ``owner/repo:Q4_K_M``
            or ``owner/repo:FILE.gguf``), or a loaded model. No target: the embedded pair.
        tokenizer: a transformers tokenizer, a directory or a GGUF file; by default the target's own.
        method: ``autoregressive``, ``speculative``, ``lookahead``, ``prompt_lookup``, ``suffix_decoding``,
            ``token_recycling`` or ``ouroboros``; the default, without a draft model and options, is
            ``suffix_decoding``, the best of those that need none.
        dtype: ``float32``, ``bfloat16``, ``float16``, ``float64``; ``auto`` keeps the checkpoint's type, but computes
            in float32 on a CPU for models of under 64 million parameters and for float16 files.
        device: ``auto`` (CUDA if there is any), ``cpu``, ``cuda``, ``cuda:N``.
        pool: None: phrases are kept as long as the decoder; False: an empty pool for every call; a path: read if it
            exists and saved on ``close`` (not with ``pool_read_only``, which needs the file), until when no other
            decoder can save to it; or a PhrasePool.
        options: the method's dataclass of config.py, or a dict of its fields. What is not said has its default.
            None takes what ``ouroboros tune`` found for this pair on this machine, if it was run.
        revision, token: of the hub; without meaning for a directory or a loaded model.
        backend: ``native`` (the library's own decoder), ``transformers`` (any causal language model that it has, run
            by its own code), or ``auto``: native where it can be, else transformers.
        device_map: how transformers spreads the target over devices, as it takes it; the native decoder knows none.
        engine: what computes in the native decoder: ``auto``, the fastest that is to be had, or one that must be had:
            ``kernels`` (C++, on CPUs with AVX2 or AVX-512), PyTorch's operators with weights ``packed`` by oneDNN or
            ``plain``, or ``static``: these in fixed shapes, on CUDA as graphs. ``info.engine`` of a model says which.
        draft_dtype: the draft model's; ``auto`` is ``dtype``, but ``w8a8`` beside a bfloat16 target or a GGUF file in
            the C++ kernels, which of a large vocabulary then compute the likely tokens' logits alone. What is drafted
            is verified whatever drafts it.
        threads: of a forward on the CPU, for this process from now on. None: one for each physical core that the
            process may use, a container's limit counted, unless PyTorch was told another number.

    Raises:
        InputError: unknown method, option, dtype, device, backend or engine; an engine that is not to be had; a draft
            for a method that uses none; a PhrasePool of another vocabulary.
        LoadError: a checkpoint that cannot be loaded exactly, or a pair whose tokenizers have too little in common.
        PoolFileError: the pool's file is no pool, damaged, of another vocabulary, or in use by another decoder.
    """
    chosen = options_for(method, options)  # to be refused before anything is read
    needs_draft = method in NEEDS_DRAFT
    if draft is not None and not needs_draft:
        raise InputError(f"method {method!r} uses no draft model; draft must be None, not {name_of(draft)}")
    if draft is not None and target is None:
        raise InputError(f"draft {name_of(draft)} needs a target; without one the embedded pair is used")
    if target is None:
        target, draft = EMBEDDED / "target", EMBEDDED / "draft" if needs_draft else None
    elif needs_draft and draft is None:
        if method != "ouroboros" or options is not None or draft_dtype != "auto":
            others = ", ".join(name for name in METHODS if name not in NEEDS_DRAFT)
            raise InputError(f"method {method!r} needs a draft model: give one, or a method that needs none ({others})")
        method, needs_draft = WITHOUT_DRAFT, False
        chosen = options_for(method)
        _LOGGER.warning("no draft model was given: decoding by %s, the best method without one", method)
    if isinstance(pool, str | os.PathLike) and method not in USES_POOL:
        raise InputError(f"method {method!r} uses no phrase pool; pool must be None or False, not {str(pool)!r}")
    if not (pool is None or pool is False or isinstance(pool, PhrasePool | str | os.PathLike)):
        raise InputError(f"pool must be None, False, a path or a PhrasePool, not {pool!r}")
    placement = Placement(dtype, device, backend, engine, device_map)
    if pool_read_only and not isinstance(pool, str | os.PathLike):
        raise InputError(f"pool_read_only needs a pool's path, not {pool!r:.60}")
    if draft_dtype != "auto" and not needs_draft:
        raise InputError(f"method {method!r} uses no draft model; draft_dtype must be auto, not {draft_dtype!r}")
    if device_map is not None and not isinstance(target, str | os.PathLike):
        raise InputError(f"device_map is for a target that is read from files, not for a loaded {name_of(target)}")
    words = None if tokenizer is None else Tokenizer.wrap(tokenizer)
    use_threads(threads)
    target_model, own = open_model(target, placement, revision, token, words is None)
    words = words or own
    draft_model = None
    if draft is not None:
        draft_model, draft_words = open_draft(draft, placement, draft_dtype, target_model.info, token)
        draft_model = _paired(target_model, words, draft_model, draft_words, name_of(draft))
    if options is None and draft_model is not None and method == "ouroboros":
        tuned = load_tuned(tuned_path(target_model.info, draft_model.info))
        chosen = tuned.chosen() if tuned else chosen
    bound = fingerprint(words, target_model)
    kept = Path(pool) if isinstance(pool, str | os.PathLike) and not pool_read_only else None
    # Before it is read, since what is saved later goes on from this.
    lock = PoolLock(kept) if kept and kept.parent.is_dir() else None
    try:
        memory = _memory(pool, bound, target_model.info.vocab_size, pool_read_only)
        return Decoder(target_model, draft_model, words, method, chosen, memory, memory_file=kept, memory_lock=lock)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def _memory(
    pool: PhrasePool | str | os.PathLike[str] | bool | None, bound: str, vocab_size: int, read_only: bool
) -> Memory | None:
    if pool is False:
        return None
    if isinstance(pool, PhrasePool):
        pool.check(vocab_size, bound)
        return Memory(pool)
    if not isinstance(pool, str | os.PathLike):
        return Memory()
    path = Path(pool)
    if path.exists() or read_only:
        return load_pool(path, bound, vocab_size)
    if not path.parent.is_dir():
        raise InputError(f"pool {str(path)!r} cannot be made: there is no directory {str(path.parent)!r}")
    return Memory()


def _paired(
    target: CausalModel, words: Tokenizer | None, draft: CausalModel, draft_words: Tokenizer | None, name: str
) -> CausalModel:
    """The draft model, if need be behind a translation, so that its token ids mean what the target's mean.

    Raises:
        LoadError: no translation is of use, or one that would be needed cannot be made without both tokenizers.
    """
    if words is None or draft_words is None:
        if target.info.vocab_size != draft.info.vocab_size:
            sizes = f"{draft.info.vocab_size} tokens, the target {target.info.vocab_size}"
            raise LoadError(f"the draft model {name} has {sizes}; without both tokenizers they must be equal")
        return draft
    if words.fingerprint == draft_words.fingerprint:
        return draft
    try:
        ends = target.info.eos_token_ids, draft.info.eos_token_ids
        found = translate(words, draft_words, target.info.vocab_size, *ends)
    except LoadError as error:
        raise LoadError(f"the draft model {name} has another tokenizer than the target, and {error}") from error
    return TranslatedModel(draft, found.spellings, found.partners, found.prefix)
