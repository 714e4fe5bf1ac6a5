"""Growth that keeps the function: a small trained checkpoint, at the size and cost of a large one, says the same.

For benchmarks: speed depends on sizes, acceptance on what the models say, and trained pairs of all sizes are not at
hand. How each size grows, and why nothing changes:

- layers, heads, inner size: ordinary random weights that end in zero columns of ``o_proj`` and ``down_proj``. Old
  layers keep their indices; the new ones lie behind them.
- head size, by a whole factor r: pair j of a head becomes pair r·j, which turns at the same frequency (θ^(-2rj/rc) =
  θ^(-2j/c)). The new dimensions have zero queries and zero columns in ``o_proj``. Scores keep their scale: √r goes into
  the queries where it is a power of two, else the config says the scale.
- hidden size, d to D: what writes into the new dimensions is zero, but for the first (t - 1)·d of them, which hold
  copies of the old ones. RMS norms then see the mean square times t·d/D: eps goes with it and gains take √(t·d/D); t is
  such that this is a power of two where there is such a t, for then no rounding differs in any dtype. Gains of copies
  are zero, so what reads new dimensions carries random weights too.
- vocabulary: logits of -∞. One hidden dimension is the same small constant in every embedding (eps gives way to it in
  the norms); it is read by the new rows of the output matrix alone, with the weight -∞.

Rotary base, context and end tokens stay the checkpoint's. Of fp32 sums only the order changes. Random parts come from
the seed and the tensor's name, on the device in its dtype, one tensor at a time; other devices draw other ones. The
tensors themselves are made in grown_weights.py.

Sizes: d hidden, c head of the small model; D and C of the grown one.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import torch

from ouroboros.errors import InputError, LoadError, UnsupportedArchitecture
from ouroboros.models.checkpoint import GROWN, Checkpoint, read_directory, resolve
from ouroboros.models.config import DecoderConfig
from ouroboros.models.families import parse_config
from ouroboros.models.grown_weights import GrownWeights, constant_of, copies_of, is_power_of_4, spread_of
from ouroboros.models.llama import LlamaModel
from ouroboros.models.loading import build, pick_device, pick_dtype
from ouroboros.models.quantised import QUANTISED
from ouroboros.models.rotary import rotary_frequencies
from ouroboros.models.saving import write_directory
from ouroboros.models.shapes import PRESETS, GrownShape

__all__ = ["PRESETS", "GrownShape", "GrownWeights", "grown_config", "load_grown", "write_grown"]


def load_grown(
    directory: str | os.PathLike[str],
    shape: str | GrownShape,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    seed: int = 0,
    engine: str = "auto",
) -> LlamaModel:
    """A checkpoint grown in the memory of the device; peak use is the model and one of its matrices.

    Args:
        directory: in Hugging Face layout, or a hub id. shape: a name of PRESETS, or sizes. Where a preset's heads
            cannot hold the checkpoint's, they are split into more and smaller ones (see GrownShape.splits).
        dtype, device, engine: as in ``ouroboros.load``, which takes the model (with ``tokenizer=directory``).
        seed: of the random parts.

    Returns:
        A model whose ``info.grown`` says that it is one.

    Raises:
        InputError: unknown preset, dtype or device; a shape that this checkpoint cannot be grown to.
        LoadError: as load_directory; or the grown model does not fit into memory.
    """
    place = pick_device(device)
    path = resolve(os.fspath(directory))
    checkpoint = read_directory(path)
    config = _pick(checkpoint.config, shape, plain=False)
    stored = "bfloat16" if dtype in QUANTISED else dtype  # rounded behind the growth, matrix by matrix
    kind = pick_dtype(stored, checkpoint.weights.dtype, config.parameters(), place)
    try:
        grown = GrownWeights(checkpoint.config, checkpoint.weights, config, kind, place, seed)
        whole = replace(checkpoint, config=config, grown=_describe(checkpoint, config))
        return build(whole, grown, dtype if dtype in QUANTISED else kind, place, engine)
    except LoadError as error:
        raise type(error)(f"cannot grow {str(path)!r}: {error}") from error


def write_grown(
    directory: str | os.PathLike[str],
    shape: str | GrownShape,
    out: str | os.PathLike[str],
    dtype: str | torch.dtype = "auto",
    seed: int = 0,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a grown checkpoint in Hugging Face layout, of the small one's model type, for other programs.

    Args:
        directory, shape, seed: as load_grown; but a preset's heads are also split where config.json could not say
            their attention scale. out: a new or empty directory. dtype: ``auto`` for the checkpoint's own.
        shard_bytes: the most that a file holds, unless a single tensor is larger. So much memory is needed.

    Raises:
        InputError, LoadError: as load_grown; or config.json cannot describe the grown model, or ``out`` is not empty.
    """
    path = resolve(os.fspath(directory))
    checkpoint = read_directory(path)
    small = checkpoint.config
    config = _pick(small, shape, plain=True)
    place = torch.device("cpu")
    stored = checkpoint.weights.dtype if dtype == "auto" else dtype
    kind = pick_dtype(stored, checkpoint.weights.dtype, config.parameters(), place)
    names = [*GrownShape.__dataclass_fields__, "rms_norm_eps"]
    raw = {**checkpoint.raw, **{name: getattr(config, name) for name in names}}
    raw |= {"torch_dtype": str(kind).removeprefix("torch."), GROWN: _describe(checkpoint, config)}
    raw.pop("dtype", None)  # the same under its later name
    layers, types = range(config.num_hidden_layers), raw.get("layer_types")
    if isinstance(types, list):
        raw["layer_types"] = types + ["full_attention"] * (len(layers) - len(types))
    if config.without_rotary:
        raw["no_rope_layers"] = [int(i not in config.without_rotary) for i in layers]
    if config.attention_scale != small.attention_scale:
        sizes = f"head_dim {config.head_dim} for the checkpoint's {small.head_dim} needs an attention scale of its own"
        raise InputError(f"{sizes}, which its config.json cannot say; 1, 4 or 16 times as much needs none")
    if config.hidden_size % config.num_attention_heads:  # transformers insists on it for Llama, head_dim or not
        sizes = (
            f"hidden_size {config.hidden_size} must be a multiple of num_attention_heads {config.num_attention_heads}"
        )
        raise InputError(f"{sizes} in a checkpoint for other programs")
    if parse_config(raw) != config:
        raise InputError(f"a config.json of model_type {raw['model_type']!r} cannot describe this one grown to {shape}")
    weights = GrownWeights(small, checkpoint.weights, config, kind, place, seed)
    write_directory(Path(out), raw, config.shapes(), weights.get, kind, shard_bytes, path)


def grown_config(small: DecoderConfig, shape: GrownShape) -> DecoderConfig:
    """The grown model's mathematics.

    Raises:
        InputError: the shape is too small, or its numbers do not fit together or to this checkpoint.
        UnsupportedArchitecture: tensors that are not grown.
    """
    if small.fused_tensors:
        raise UnsupportedArchitecture("checkpoints with fused tensors (phi3) cannot be grown")
    if small.output_norms:
        raise UnsupportedArchitecture("checkpoints with norms behind their blocks (gemma) cannot be grown")
    vocab_size = small.vocab_size if shape.vocab_size is None else shape.vocab_size
    tied = small.tie_word_embeddings if shape.tie_word_embeddings is None else shape.tie_word_embeddings
    shape = replace(shape, vocab_size=vocab_size, tie_word_embeddings=tied)
    sizes = {name: getattr(shape, name) for name in GrownShape.__dataclass_fields__}
    for name, value in sizes.items():
        least = getattr(small, name)
        if name != "tie_word_embeddings" and (not isinstance(value, int) or value < least):
            raise InputError(f"{name} must be a whole number from the checkpoint's {least} on, not {value!r}")
    if tied and (not small.tie_word_embeddings or vocab_size > small.vocab_size):
        raise InputError("tie_word_embeddings must be False: the output matrix would differ from the input's")
    try:
        config = replace(small, **sizes)
    except LoadError as error:
        raise InputError(str(error)) from error
    needed = small.num_key_value_heads * spread_of(small, config)
    if needed > config.num_key_value_heads:
        group = config.num_attention_heads // config.num_key_value_heads
        raise InputError(
            f"num_key_value_heads must be {needed} at least for groups of {group}, not {config.num_key_value_heads}"
        )
    if config.head_dim > small.head_dim:
        config = _wider_heads(small, config)
    kept = copies_of(small, config) * small.hidden_size
    constant = constant_of(small, config) * small.embedding_multiplier
    if vocab_size > small.vocab_size and (kept == config.hidden_size or not constant):
        least = f"a hidden_size above {small.hidden_size} and an rms_norm_eps above 0"
        raise InputError(f"vocab_size {vocab_size} needs {least}, not {config.hidden_size} and {small.rms_norm_eps}")
    return replace(config, rms_norm_eps=(small.rms_norm_eps * kept - constant**2) / config.hidden_size)


def _wider_heads(small: DecoderConfig, config: DecoderConfig) -> DecoderConfig:
    """The config with an attention scale where heads are wider than before."""
    sizes = f"head_dim {config.head_dim} for the checkpoint's {small.head_dim}"
    if small.qk_norm:
        raise InputError(f"{sizes} is not possible: it has norms over heads, whose size must stay")
    factor, rest = divmod(config.head_dim, small.head_dim)
    old, new = (rotary_frequencies(c.head_dim, c.rope, c.max_position_embeddings)[0] for c in (small, config))
    if rest or not torch.equal(old, new[::factor]):
        kind = config.rope.get("rope_type", "default")
        raise InputError(f"{sizes} is not possible: it must be a multiple whose {kind} rotary frequencies hold the old")
    if small.attention_scale is None and not is_power_of_4(factor, 1):
        return replace(config, attention_scale=1 / math.sqrt(small.head_dim))
    return config


def _pick(small: DecoderConfig, shape: str | GrownShape, plain: bool) -> DecoderConfig:
    """``plain``: without an attention scale that the small config has not."""
    if isinstance(shape, GrownShape):
        return grown_config(small, shape)
    if not isinstance(shape, str) or shape not in PRESETS:
        raise InputError(f"shape must be one of {', '.join(PRESETS)} or a GrownShape, not {shape!r}")
    refusals = []
    for split in PRESETS[shape].splits():
        try:
            config = grown_config(small, split)
        except InputError as error:
            refusals.append(error)
        else:
            if not plain or config.attention_scale == small.attention_scale:
                return config
    raise InputError(f"the checkpoint cannot be grown to {shape!r}: {refusals[0]}")


def _describe(checkpoint: Checkpoint, config: DecoderConfig) -> str:
    shape = GrownShape(**{name: getattr(config, name) for name in GrownShape.__dataclass_fields__})
    small = checkpoint.config
    return f"{small.num_hidden_layers} layers × {small.hidden_size} grown to {shape}"
