"""Bad GGUF files: one line that says what is wrong, before anything is made of a number that the file names."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ouroboros.errors import LoadError, UnsupportedArchitecture
from ouroboros.models.base import ScoreRequest
from ouroboros.models.loading import load_directory
from ouroboros.text import Tokenizer
from ouroboros.tree import TokenTree
from tests.gguf_files import Stored, byte_vocabulary, describe, stored_as, tensors_of, write_gguf
from tests.test_gguf import random_module

CPU = torch.device("cpu")
Parts = tuple[dict[str, Any], dict[str, Stored]]


@pytest.fixture(scope="module")
def good() -> Parts:
    """Metadata and tensors of a small file."""
    module = random_module(model_type="llama", vocab_size=264, intermediate_size=32, num_hidden_layers=1)
    return describe(module, **byte_vocabulary(264)), tensors_of(module, {"ffn_gate": "Q8_0", "ffn_up": "Q4_0"})


@pytest.fixture
def write(tmp_path: Path, good: Parts) -> Callable[..., Path]:
    """A file with changed metadata and tensors; None takes one away."""

    def write(metadata: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None, **more: Any) -> Path:
        changed = [{**was, **(new or {})} for was, new in zip(good, (metadata, tensors), strict=True)]
        kept = [{key: value for key, value in part.items() if value is not None} for part in changed]
        return write_gguf(tmp_path / "bad.gguf", kept[0], kept[1], **more)

    return write


def refused(path: Path, words: str, kind: type[LoadError] = LoadError) -> None:
    with pytest.raises(kind, match=words) as caught:
        load_directory(path, "auto", CPU)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_the_good_one(write: Callable[..., Path]) -> None:
    for version in (2, 3):
        assert load_directory(write(version=version), "auto", CPU).info.vocab_size == 264
    assert load_directory(write({"general.alignment": 64}, alignment=64), "auto", CPU).info.stored == "F32, Q8_0, Q4_0"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "does not begin as a GGUF file"),
        (b"GGUF", "does not begin"),
        (b"GGML" + bytes(100), "does not begin"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), r"version of the format is 1 \(supported: 2, 3\)"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62), "4611686018427387904 entries of 'metadata', and 0 bytes are left"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "9223372036854775808 entries of 'tensors'"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60) + bytes(9), "it is cut short"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 99) + bytes(9), "unknown type 99"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**61), "entries of 'k'"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**61), "entries of 'k'"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1), "elements of type 9"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 4) + b"\xff\xff\xff\xff" + bytes(9), "no UTF-8"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "no matrix 'token_embd.weight'"),
    ],
)
def test_formats(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    refused(path, words)


def test_cut_short_anywhere(write: Callable[..., Path]) -> None:
    path = write()
    data = path.read_bytes()
    for size in (*range(4, 400, 7), *range(400, len(data) - 32, 997), len(data) - 33):
        path.write_bytes(data[:size])
        refused(path, "cut short|does not begin|bytes are left|damaged")


VALUES: list[tuple[dict[str, Any], str]] = [
    ({"llama.block_count": 2**31 - 1}, "llama.block_count is 2147483647, and it holds 12 tensors"),
    ({"llama.block_count": 2}, "lacks the tensor 'model.layers.1.self_attn.q_proj.weight' and 8 more"),
    ({"llama.block_count": 0}, "a whole number from 1 .* as 'llama.block_count', not 0"),
    ({"llama.embedding_length": None}, "'llama.embedding_length', not None"),
    ({"llama.embedding_length": "32"}, "'llama.embedding_length', not '32'"),
    ({"llama.embedding_length": 64}, r"'model.embed_tokens.weight' has shape \[264, 32\], where .* \[264, 64\]"),
    ({"llama.feed_forward_length": 2**31 - 1}, r"\[2147483647, 32\]"),
    ({"llama.feed_forward_length": np.array([32, 16], np.int32)}, "differs from layer to layer"),
    ({"llama.attention.head_count": 3}, "must be a multiple|shape"),
    ({"llama.attention.head_count": 2**31 - 1, "llama.attention.head_count_kv": 1}, "shape"),
    ({"llama.attention.value_length": 4}, "llama.attention.value_length 4 is not supported"),
    ({"llama.rope.dimension_count": 2}, "llama.rope.dimension_count 2 is not supported"),
    ({"llama.rope.freq_base": float("nan")}, "number as 'llama.rope.freq_base', not nan"),
    ({"llama.rope.freq_base": 0.5}, "rope_theta"),
    ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "rms_norm_eps"),
    ({"llama.rope.scaling.type": "longrope"}, "'longrope' is not supported"),
    ({"llama.expert_count": 8}, "mixtures of experts"),
    ({"general.architecture": "mamba"}, r"'mamba' is not supported \(supported: llama, qwen2, qwen3, phi3, gemma2"),
    ({"general.architecture": None}, "None is not supported"),
    ({"general.alignment": 0}, "multiple of 8, not 0"),
    ({"general.alignment": 12}, "multiple of 8, not 12"),
    ({"tokenizer.ggml.eos_token_id": 264}, "must be a token id below 264, not 264"),
    ({"tokenizer.ggml.tokens": ["x"] * 265}, "vocabulary has 265 tokens, and its embeddings have 264 rows"),
]


@pytest.mark.parametrize(
    ("metadata", "words"), VALUES, ids=[next(iter(v)) + f" {i}" for i, (v, _) in enumerate(VALUES)]
)
def test_metadata(write: Callable[..., Path], metadata: dict[str, Any], words: str) -> None:
    refused(write(metadata), words)


def test_architectures_are_refused_as_such(write: Callable[..., Path]) -> None:
    refused(write({"general.architecture": "rwkv7"}), "'rwkv7'", UnsupportedArchitecture)


def test_tensors(write: Callable[..., Path]) -> None:
    ones = np.ones((32, 32), np.float32)
    refused(write(tensors={"blk.0.attn_q.weight": None}), "lacks the tensor 'model.layers.0.self_attn.q_proj.weight'")
    refused(write(tensors={"token_embd.weight": None}), "no matrix 'token_embd.weight'")
    refused(write(tensors={"blk.0.attn_q.weight": stored_as("F32", ones[:8])}), r"shape \[8, 32\]")
    refused(
        write(tensors={"blk.0.extra.weight": stored_as("F32", ones)}), "'blk.0.extra.weight' is none that .*'llama'"
    )
    refused(write(tensors={"blk.0.attn_k.bias": stored_as("F32", ones[0])}), "'blk.0.attn_k.bias' is none")
    refused(write(tensors={"rope_freqs.weight": stored_as("F32", ones[0, :3])}), "3 numbers, where heads have 4")
    broken = stored_as("F32", np.full((264, 32), np.nan, np.float32))
    refused(write(tensors={"output.weight": broken}), "'lm_head.weight' holds nan")
    for kind, block in (("IQ4_NL", 18), ("Q2_K", 84), ("I32", 4), ("Q8_K", 292)):
        other = Stored(kind, bytes(4096 * block), (256, 256))
        refused(write(tensors={"blk.0.attn_q.weight": other}), rf"is stored as {kind}, which is not .*\(supported: F32")
    odd = Stored("Q8_0", bytes(34 * 16), (16, 33))
    refused(write(tensors={"blk.0.attn_q.weight": odd}), "rows of 33 numbers, and Q8_0 has blocks of 32")
    refused(write(tensors={"blk.0.attn_q.weight": Stored("F32", b"", (16, 0))}), r"shape \[16, 0\]")
    refused(write(tensors={"blk.0.attn_q.weight": Stored("F32", b"", (2**40, 2**40))}), "cut short or damaged")
    refused(write(tensors={"blk.0.attn_q.weight": Stored("F32", bytes(64), (1, 1, 1, 1, 16))}), "5 dimensions")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"tokenizer.ggml.model": "bert"}, r"'bert' is not supported \(supported: 'gpt2', 'llama'\)"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "'unheard-of' is not supported .*qwen2"),
        ({"tokenizer.ggml.merges": None}, "merges must be a list of texts, not None"),
        ({"tokenizer.ggml.merges": ["h x"]}, "holds 'h x', whose parts and whole are no tokens"),
        ({"tokenizer.ggml.token_type": np.array([1], np.int32)}, "a number for each of 264 tokens"),
        ({"tokenizer.ggml.tokens": 3}, "must be a list of texts, not 3"),
        ({"tokenizer.ggml.bos_token_id": 2**31}, "bos_token_id must be a token id below 264"),
        ({"tokenizer.ggml.model": "llama"}, "scores must have a number for each"),
        ({"tokenizer.chat_template": 7}, "chat template 'default' must be a text"),
    ],
)
def test_vocabularies(write: Callable[..., Path], metadata: dict[str, Any], words: str) -> None:
    with pytest.raises(LoadError, match=words):
        Tokenizer.from_directory(write(metadata))


def test_a_vocabulary_without_bytes_cannot_encode_every_text(write: Callable[..., Path]) -> None:
    tokens = ["<unk>", "a", "b", "ab"]
    vocabulary: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": None,
    }
    vocabulary |= {"tokenizer.ggml.scores": np.zeros(4, np.float32), "tokenizer.ggml.token_type": None}
    vocabulary |= {"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.eos_token_id": None}
    with pytest.raises(LoadError, match="neither all bytes nor an unknown token"):
        Tokenizer.from_directory(write(vocabulary))


def test_any_mutation_is_an_error_or_a_model(write: Callable[..., Path]) -> None:
    """1,000 files with a few bytes, numbers or stretches of them changed: mostly in the part that describes."""
    path, source, begun = write(), random.Random(5), time.monotonic()
    data = path.read_bytes()
    described = data.rindex(b"blk.0") + 60
    outcomes = {"model": 0, "error": 0, "lines": 0}
    for _ in range(1000):
        changed = bytearray(data)
        for _ in range(source.choice((1, 1, 2, 5))):
            end = len(data) if source.random() < 0.1 else described
            at = source.randrange(4, max(min(end, len(changed)), 5))
            kind = source.randrange(5)
            if kind == 0:
                changed[at : at + 1] = bytes([source.randrange(256)])
            elif kind == 1:
                changed[at : at + 8] = struct.pack("<Q", source.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)))
            elif kind == 2:
                del changed[at : at + source.randrange(1, 9)]
            elif kind == 3:
                changed[at:at] = source.randbytes(source.randrange(1, 9))
            else:
                del changed[max(at, 8) :]
        path.write_bytes(changed)
        try:
            model = load_directory(path, "auto", CPU, "plain")
            model.score([ScoreRequest(model.open(), TokenTree(0))])
            Tokenizer.from_directory(path)
            outcomes["model"] += 1
        except LoadError as error:
            outcomes["error" if "\n" not in str(error) else "lines"] += 1
    assert outcomes["lines"] == 0
    assert outcomes["model"] > 20
    assert outcomes["error"] > 500
    assert time.monotonic() - begun < 60
