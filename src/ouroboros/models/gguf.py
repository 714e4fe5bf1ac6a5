"""A GGUF file as a checkpoint: its tensors under the names of Hugging Face layout, their rows in the order of that.

llama.cpp turns pairs of neighbours where Hugging Face turns the halves of a head, and so the rows of queries and keys
of some architectures lie in another order in its files; here they are put back. It knows nothing of what computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ouroboros.errors import LoadError
from ouroboros.models.checkpoint import Checkpoint
from ouroboros.models.config import DecoderConfig
from ouroboros.models.gguf_config import read_config
from ouroboros.models.gguf_file import GGUFFile
from ouroboros.models.gguf_reader import Value
from ouroboros.models.stored import StoredWeights
from ouroboros.models.weights import check_tensors

__all__ = ["GGUFTensors", "read_gguf"]

MODEL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# With norms behind the blocks.
OUTPUT_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
PAIRED = ("llama", "smollm3", "granite")  # architectures whose rotary pairs are neighbours
CONTROL = 3  # the type of a control token
# Control tokens that end a text or a turn of one, beside those that metadata name: as llama.cpp finds them.
ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"),
    *("<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "</s>", "<eos>"),
)
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def read_gguf(path: Path) -> Checkpoint:
    """Opens a GGUF file, or the file of a split one; no tensor is read yet.

    Raises:
        UnsupportedArchitecture: an architecture, or a variation, that is not computed. LoadError: no such file, a
            damaged one, or one whose parts contradict each other.
    """
    try:
        file = GGUFFile(path)
        shape = file.shape("token_embd.weight")
        if shape is None or len(shape) != 2:
            raise LoadError("it holds no matrix 'token_embd.weight'")
        factors = {name: _numbers(file, name) for name in ROPE_FACTORS if file.shape(name) is not None}
        raw, config = read_config(file.metadata, file.names, shape[0], factors)
        weights = GGUFTensors(file, config)
        check_tensors(config, weights)
        unknown = weights.unknown()
        if unknown is not None:
            kind = file.metadata["general.architecture"]
            raise LoadError(f"tensor {unknown!r:.80} is none that the architecture {kind!r} with these metadata has")
        eos = _end_tokens(file.metadata, shape[0])
        return Checkpoint(raw, config, eos, weights, stored=weights.kinds())
    except LoadError as error:
        raise type(error)(f"cannot load {str(path)!r}: {error}") from error


class GGUFTensors:
    """The tensors of a GGUF file (see tensors.Tensors), by their names in Hugging Face layout, as float32 numbers."""

    def __init__(self, file: GGUFFile, config: DecoderConfig, dtype: torch.dtype = torch.float32) -> None:
        self._file, self._config, self._dtype = file, config, dtype
        self._paired = file.metadata["general.architecture"] in PAIRED
        self._names = {name: _name(name, config) for name in config.shapes()}

    @property
    def dtype(self) -> torch.dtype:
        """What stands in for the stored types: bfloat16, or float32 where nothing is stored in less."""
        kinds = {self._file.kind(name) for name in self._names.values() if len(self._file.shape(name) or ()) > 1}
        return torch.float32 if kinds == {"F32"} else torch.float16 if kinds == {"F16"} else torch.bfloat16

    def names(self) -> Collection[str]:
        return self._names.keys()

    def unknown(self) -> str | None:
        """The first tensor that the architecture has no use for."""
        known = {*self._names.values(), *ROPE_FACTORS}
        return next((name for name in self._file.names if name not in known), None)

    def kinds(self) -> str:
        """The types of the matrices, the commonest first."""
        matrices = [name for name in self._names.values() if len(self._file.shape(name) or ()) > 1]
        return ", ".join(kind for kind, _ in Counter(self._file.kind(name) for name in matrices).most_common())

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._file.shape(self._names[name]) if name in self._names else None

    def shares(self, name: str, dtype: torch.dtype, device: torch.device) -> bool:
        return False

    def stored(self, name: str) -> StoredWeights:
        """A matrix as it is stored, its rows in the order of Hugging Face layout."""
        found = self._file.tensor(self._names[name])
        rows = self._rows(name, found.bytes_RB.shape[0])
        return found if rows is None else StoredWeights(found.kind, found.bytes_RB[rows], found.columns)

    def rounded(self, dtype: torch.dtype) -> GGUFTensors:
        """The same, with matrices rounded to a type while they are made: they are never whole in float32."""
        return GGUFTensors(self._file, self._config, dtype)

    def get(self, name: str) -> Tensor:
        """The numbers of a tensor, of a vector always in float32; its pages are let go."""
        stored = self._file.tensor(self._names[name])
        vector = len(self._file.shape(self._names[name]) or ()) == 1
        numbers = stored.dequantised(dtype=torch.float32 if vector else self._dtype)
        self._file.release(self._names[name])
        numbers = numbers[0] if vector else numbers
        rows = self._rows(name, len(numbers))
        return numbers if rows is None else numbers[rows]

    def release(self, name: str) -> None:
        """Lets go of the pages that reading ``stored`` makes part of this process's memory; they can be read again."""
        self._file.release(self._names[name])

    def _rows(self, name: str, count: int) -> Tensor | None:
        """Where the rows of queries or keys lie in the file; None where they lie in order."""
        if not self._paired or not name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")):
            return None
        return torch.arange(count).view(-1, self._config.head_dim // 2, 2).transpose(1, 2).flatten()


def _name(name: str, config: DecoderConfig) -> str:
    """The file's name of a tensor."""
    module, _, kind = name.rpartition(".")
    if module in MODEL:
        return f"{MODEL[module]}.{kind}"
    _, _, layer, place = module.split(".", 3)
    places = {**LAYER, **OUTPUT_NORMS} if config.output_norms else LAYER
    return f"blk.{layer}.{places[place]}.{kind}"


def _numbers(file: GGUFFile, name: str) -> list[float]:
    return [float(x) for x in file.tensor(name).dequantised().flatten()]


def _end_tokens(metadata: Mapping[str, Value], vocab_size: int) -> frozenset[int]:
    """All ids that end a text.

    Raises:
        LoadError: an id that is none, or a vocabulary that does not fit the embeddings.
    """
    tokens, types = metadata.get("tokenizer.ggml.tokens", []), metadata.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and len(tokens) > vocab_size:
        raise LoadError(f"its vocabulary has {len(tokens)} tokens, and its embeddings have {vocab_size} rows")
    found = set()
    for key in END_KEYS:
        value = metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size:
            raise LoadError(f"tokenizer.ggml.{key} must be a token id below {vocab_size}, not {value!r:.40}")
        found.add(value)
    if isinstance(tokens, list) and isinstance(types, np.ndarray) and len(types) == len(tokens):
        found.update(i for i in np.flatnonzero(types == CONTROL).tolist() if tokens[i] in ENDS)
    return frozenset(found)
