"""The modules that are trained and that teach: read, pruned, made from sizes, written as an ordinary directory.

The only file of this room that knows transformers. It knows nothing of losses and data.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging as hf_logging

from ouroboros.errors import InputError, LoadError, UnsupportedArchitecture
from ouroboros.files import check_directory, read_json
from ouroboros.models.checkpoint import check_code
from ouroboros.models.gguf import read_gguf
from ouroboros.models.transformers_config import class_name
from ouroboros.text import Tokenizer
from ouroboros.training.settings import DistillSettings

__all__ = ["Sizes", "choose_sizes", "kept_layers", "new_module", "prune", "read_module", "stored_dtype", "write_module"]

BESIDE = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.jinja")
_LAYER = re.compile(r"\.(layers|h|blocks)\.(\d+)\.")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def _quietly(function: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """A call into transformers without its progress bars and remarks; its errors as one line.

    Raises:
        LoadError: whatever it raised.
    """
    shows, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        return function(*args, **settings)
    except Exception as error:  # transformers raises dozens of unrelated types
        raise LoadError(" ".join(str(error).split())[:200] or type(error).__name__) from error
    finally:
        hf_logging.set_verbosity(level)
        if shows:
            hf_logging.enable_progress_bar()


def read_module(path: Path, dtype: torch.dtype | str, device: torch.device) -> Any:
    """The checkpoint as transformers runs it, without dropout. ``dtype``: ``auto`` is the checkpoint's own.

    Raises:
        LoadError: no causal language model that transformers can load.
    """
    try:
        if path.is_file():
            return _of_gguf(path, dtype).to(device).eval()
        check_directory(path)
        raw = read_json(path / "config.json") or {}
        check_code(raw, class_name(raw.get("model_type")))
        module = _quietly(
            transformers.AutoModelForCausalLM.from_pretrained,
            str(path),
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
    except LoadError as error:
        raise LoadError(f"cannot train with {str(path)!r}: {error}") from error
    return module.to(device).eval()


def _of_gguf(path: Path, dtype: torch.dtype | str) -> Any:
    """transformers' module of a GGUF file's family with the file's numbers."""
    checkpoint = read_gguf(path)
    config, kind = checkpoint.config, checkpoint.weights.dtype if dtype == "auto" else dtype
    if config.rope["rope_type"] != "default":
        raise UnsupportedArchitecture(f"rope scaling {config.rope['rope_type']!r} of a GGUF file is not trained with")
    raw: dict[str, Any] = {name: value for name, value in checkpoint.raw.items() if value is not None}
    raw["eos_token_id"] = sorted(checkpoint.eos_token_ids)
    module = _quietly(
        transformers.AutoModelForCausalLM.from_config, transformers.AutoConfig.for_model(**raw), dtype=kind
    )
    offset = 1.0 if config.output_norms else 0.0  # such a file's gains are stored with the 1 that Gemma adds
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            numbers = checkpoint.weights.get(name)
            parameter.copy_(numbers - offset if "norm" in name else numbers)
    return module


def stored_dtype(path: Path) -> torch.dtype:
    """The type of a checkpoint's weights, as its config.json has it; float32 where that does not say."""
    try:
        raw = read_json(path / "config.json") or {}
    except LoadError:
        return torch.float32
    kind = getattr(torch, str(raw.get("dtype") or raw.get("torch_dtype")), None)
    return kind if isinstance(kind, torch.dtype) else torch.float32


# --------------------------------------------------------------------------------------------------------- pruned


def kept_layers(layers: int, keep: int) -> list[int]:
    """Which of ``layers`` a copy of ``keep`` layers has: spread evenly, the first and (of two or more) the last among
    them.

    Raises:
        InputError: more than there are.
    """
    if not 1 <= keep < layers:
        raise InputError(f"layers must be from 1 to {layers - 1} of the target's {layers}, not {keep}")
    return [0] if keep == 1 else [round(i * (layers - 1) / (keep - 1)) for i in range(keep)]


def prune(module: Any, keep: int) -> Any:
    """A new module in float32, on the same device, with ``keep`` of the module's layers; embeddings, output matrix and
    norms are copies of its own.

    Raises:
        InputError: more layers than there are. LoadError: an architecture whose layers are not found.
    """
    config = copy.deepcopy(module.config)
    count = next((name for name in _LAYER_COUNTS if isinstance(getattr(config, name, None), int)), None)
    if count is None:
        raise LoadError(f"cannot prune {type(module).__name__}: its config does not say how many layers it has")
    layers = getattr(config, count)
    kept = kept_layers(layers, keep)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == layers:  # layer_types, no_rope_layers, …
            setattr(config, name, [value[i] for i in kept])
    setattr(config, count, keep)
    places = {old: new for new, old in enumerate(kept)}
    state = {}
    for name, tensor in module.state_dict().items():
        found = _LAYER.search(name)
        if found is None:
            state[name] = tensor
        elif int(found[2]) in places:
            state[f"{name[: found.start(2)]}{places[int(found[2])]}{name[found.end(2) :]}"] = tensor
    pruned = _quietly(
        transformers.AutoModelForCausalLM.from_config, config, dtype=torch.float32, trust_remote_code=False
    )
    missing = set(pruned.state_dict()) - set(state)
    if missing:
        raise LoadError(f"cannot prune {type(module).__name__}: no layer gives {min(missing)!r}")
    pruned.load_state_dict({name: state[name] for name in pruned.state_dict()})
    pruned.generation_config = copy.deepcopy(module.generation_config)
    return pruned.to(module.device).eval()


# ------------------------------------------------------------------------------------------------------------ new


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """Of a new Llama model."""

    hidden: int
    layers: int
    heads: int
    inner: int

    def parameters(self, vocab_size: int) -> int:
        """With tied embeddings, and keys and values as many as queries."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.inner + 2 * self.hidden
        return vocab_size * self.hidden + self.layers * layer + self.hidden


def choose_sizes(settings: DistillSettings, vocab_size: int) -> Sizes:
    """The sizes that were given, with the others in the usual proportions; drafts are shallow, since their layers are
    what a draft token waits for.

    Raises:
        InputError: sizes that do not fit together, or no model of so few parameters.
    """
    hiddens = range(32, 8193, 32) if settings.hidden is None else [settings.hidden]
    found: Sizes | None = None
    for hidden in hiddens:
        sizes = _sizes(settings, hidden)
        if settings.parameters is None or sizes.parameters(vocab_size) <= settings.parameters:
            found = sizes
    if found is None:
        least = _sizes(settings, hiddens[0]).parameters(vocab_size)
        asked = f"with a vocabulary of {vocab_size} and these sizes, not {settings.parameters}"
        raise InputError(f"parameters must be at least {least} {asked}")
    if found.hidden % found.heads or found.hidden // found.heads % 2:
        raise InputError(f"hidden must be an even multiple of heads ({found.heads}), not {found.hidden}")
    return found


def _sizes(settings: DistillSettings, hidden: int) -> Sizes:
    heads = settings.heads or max(1, hidden // 64 if hidden % 64 == 0 else hidden // 32)
    inner = settings.inner or -(-hidden * 8 // 3 // 32) * 32
    return Sizes(hidden, settings.layers or max(2, hidden // 128), heads, inner)


def new_module(sizes: Sizes, like: Any, seed: int) -> Any:
    """A Llama of these sizes with random weights in float32 on the CPU, for the vocabulary of the module ``like``."""
    theirs = like.config
    config = transformers.LlamaConfig(
        vocab_size=theirs.vocab_size,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.inner,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=getattr(theirs, "max_position_embeddings", 2048),
        tie_word_embeddings=True,
        bos_token_id=theirs.bos_token_id,
        eos_token_id=theirs.eos_token_id,
        rms_norm_eps=1e-5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _quietly(transformers.LlamaForCausalLM, config)
    module.generation_config = copy.deepcopy(like.generation_config)
    return module.eval()


# -------------------------------------------------------------------------------------------------------- written


def write_module(module: Any, out: Path, dtype: torch.dtype, beside: Path) -> None:
    """Writes config.json, generation_config.json, safetensors and the tokenizer of the directory or GGUF file
    ``beside``.

    Raises:
        LoadError: it cannot be written.
    """
    kind = str(dtype).removeprefix("torch.")
    copies: dict[int, torch.Tensor] = {}  # by address, so that tied matrices stay one and are written once
    state = {
        name: copies.setdefault(tensor.data_ptr(), tensor.detach().to("cpu", dtype))
        for name, tensor in module.state_dict().items()
    }
    try:
        _quietly(module.save_pretrained, out, state_dict=state)
        config = json.loads((out / "config.json").read_text(encoding="utf-8")) | {"dtype": kind}
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        words = Tokenizer.from_directory(beside) if beside.is_file() else None
        if words is not None:
            words.hf.save_pretrained(out)
        for file in {file for pattern in BESIDE for file in beside.glob(pattern) if file.is_file()}:
            shutil.copyfile(file, out / file.name)
    except (OSError, LoadError) as error:
        raise LoadError(f"cannot write the draft to {str(out)!r}: {error}") from error
