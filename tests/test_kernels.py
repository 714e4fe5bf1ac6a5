"""The C++ kernels against PyTorch's operators; rows do not depend on each other; what happens without kernels."""

from __future__ import annotations

import random
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ouroboros import Decoder
from ouroboros.config import METHODS, options_for
from ouroboros.drafting.factory import NEEDS_DRAFT
from ouroboros.errors import InputError
from ouroboros.kernels import library
from ouroboros.kernels.building import NEEDED
from ouroboros.models import kernels as decoder
from ouroboros.models.base import ScoreRequest, Slot
from ouroboros.models.linear import linear, packs
from ouroboros.models.llama import LlamaModel
from ouroboros.models.loading import parse_config
from ouroboros.models.quantised import QUANTISED, Precision, head_format, quantise
from ouroboros.tree import Origin, TokenTree
from tests.pairs import Weights, random_weights

CPU = torch.device("cpu")
VOCAB = 75
# Sizes that fill no tile: 16 and 32 outputs, pairs of words, 64 keys, 64 elements of a head.
BASE: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 72,
    "intermediate_size": 108,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 22,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "one key head": {"num_attention_heads": 18, "num_key_value_heads": 1},
    "large heads": {"num_attention_heads": 2, "head_dim": 144},
    "round sizes": {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64, "vocab_size": 96},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 2.0,
            "high_freq_factor": 8.0,
            "original_max_position_embeddings": 64,
        }
    },
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}},
    "window": {"model_type": "mistral", "sliding_window": 5},
    "mixed windows": {
        "model_type": "mistral",
        "sliding_window": 40,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True},
    "fused": {"model_type": "phi3"},
    "without rotary": {"model_type": "smollm3", "no_rope_layer_interval": 2},
    "multipliers": {
        "model_type": "granite",
        "attention_multiplier": 0.1,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.6,
        "logits_scaling": 7.0,
    },
    # caps that are felt
    "gemma2": {
        "model_type": "gemma2",
        "query_pre_attn_scalar": 9,
        "sliding_window": 5,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 4.0,
    },
    "gemma3": {"model_type": "gemma3_text", "sliding_window": 20, "sliding_window_pattern": 2, "head_dim": 256},
}
TYPES = ("float32", "bfloat16")


needed = pytest.mark.skipif(isinstance(library.library(), str), reason=f"no kernels: {library.library()}")


def model(variant: str, dtype: torch.dtype, engine: str, quantised: str | None = None) -> LlamaModel:
    config = {**BASE, **VARIANTS[variant]}
    tensors = random_weights(config, 3, scale=0.25)
    return LlamaModel(
        parse_config(config), Weights(tensors), frozenset(), Precision.of(quantised or dtype), CPU, engine
    )


def text(count: int, seed: int = 0) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(VOCAB) for _ in range(count)]


def chain(tokens: Sequence[int]) -> TokenTree:
    tree = TokenTree(tokens[0])
    tree.extend(0, tokens[1:], Origin.DRAFT)
    return tree


def random_tree(nodes: int, seed: int) -> TokenTree:
    source, tree = random.Random(seed), TokenTree(seed % VOCAB)
    while len(tree) < nodes:
        tree.add(source.randrange(max(0, len(tree) - 6), len(tree)), source.randrange(VOCAB), Origin.DRAFT)
    return tree


def filled(of: LlamaModel, tokens: Sequence[int]) -> Slot:
    slot = of.open()
    of.prefill(slot, tokens)
    return slot


def score(of: LlamaModel, slot: Slot, tree: TokenTree, **more: Any) -> Tensor:
    return of.score([ScoreRequest(slot, tree, **more)])[0]


def one_by_one(of: LlamaModel, tokens: Sequence[int]) -> list[Tensor]:
    """Plain decoding: the logits behind each token."""
    slot, found = of.open(), []
    for token in tokens:
        found.append(score(of, slot, TokenTree(token))[0])
        slot.commit([0])
    return found


def same_bits_in_pieces(of: LlamaModel, tokens: Sequence[int], cuts: Iterable[Sequence[int]]) -> None:
    """Chains of these sizes, one after the other, have the bits of plain decoding."""
    plain = one_by_one(of, tokens)
    for pieces in cuts:
        slot, at = filled(of, []), 0
        for size in pieces:
            got = score(of, slot, chain(tokens[at : at + size]))
            slot.commit(range(size))
            assert all(torch.equal(a, b) for a, b in zip(got, plain[at : at + size], strict=True))
            at += size


def life(of: LlamaModel) -> Tensor:
    """All logits of a prefill, a tree, a commit of scattered nodes, and a second tree behind tokens to catch up."""
    slot, tree = filled(of, text(41)), random_tree(30, 1)
    found = [score(of, slot, tree)]
    slot.commit(tree.path(29))
    found.append(score(of, slot, random_tree(9, 2), catch_up=text(3, 5)))
    return torch.cat(found)


# ------------------------------------------------------------------------------------------------- the same numbers


@needed
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant: str) -> None:
    """fp32 to rounding; bf16 no worse on the average than PyTorch's operators in bf16."""
    exact = life(model(variant, torch.float64, "plain"))
    mine = life(model(variant, torch.float32, "kernels"))
    assert mine.dtype == torch.float32
    assert (mine - exact).abs().max() <= 2e-5 * exact.abs().max()
    kernels, plain = (life(model(variant, torch.bfloat16, engine)).double() for engine in ("kernels", "plain"))
    assert (kernels - exact).abs().mean() <= (plain - exact).abs().mean()


@needed
def test_any_number_of_rows() -> None:
    exact, mine = model("grouped", torch.float64, "plain"), model("grouped", torch.float32, "kernels")
    slots = filled(exact, text(20)), filled(mine, text(20))
    for rows in range(1, 71):
        tree = random_tree(rows, rows)
        expected, got = score(exact, slots[0], tree), score(mine, slots[1], tree)
        assert got.shape == (rows, VOCAB)
        assert (got - expected).abs().max() <= 2e-5 * expected.abs().max()
        for slot in slots:
            slot.truncate(0)


def rounded(config: Mapping[str, Any], weights: str, engine: str) -> dict[str, Tensor]:
    """The tensors that a model of this format computes with, in fp64; of tied ones the operators round neither."""
    tensors = {}
    for name, tensor in random_weights(config, 3, scale=0.25).items():
        half = tensor.bfloat16()
        kind = None if "norm" in name or "bias" in name else weights
        if "embed_tokens" in name or "lm_head" in name:  # a tied one is both
            rounds = "lm_head" in name or (config.get("tie_word_embeddings") and engine == "kernels")
            kind = head_format(weights) if rounds else None
        tensors[name] = half.double() if kind is None else quantise(half, kind).dequantised(torch.float64)
    return tensors


@pytest.mark.parametrize("weights", QUANTISED)
@pytest.mark.parametrize("variant", ["grouped", "tied", "biases", "round sizes"])
@pytest.mark.parametrize("engine", ["kernels", "plain", "static"])
def test_quantised(variant: str, weights: str, engine: str) -> None:
    """As if the weights had been rounded before; the rest rounds as bf16 does, on every engine. Rows of 8 bits, which
    the kernels alone have, are as much coarser."""
    if engine == "kernels" and isinstance(library.library(), str):
        pytest.skip(str(library.library()))
    config = {**BASE, **VARIANTS[variant]}
    tensors = Weights(rounded(config, weights, engine))
    exact = LlamaModel(parse_config(config), tensors, frozenset(), Precision.of(torch.float64), CPU, "plain")
    small = model(variant, torch.bfloat16, engine, weights)
    assert (small.info.dtype, small.info.engine.split(" (")[0]) == (weights, engine)
    half = model(variant, torch.bfloat16, engine)
    error = (life(half) - life(model(variant, torch.float64, "plain"))).abs().mean()  # of bf16 itself
    found = (life(small) - life(exact)).abs().mean()
    if (weights, engine) == ("w8a8", "kernels"):
        assert error < found <= 3.5 * error
    else:
        assert found <= 1.4 * error


def test_rounding() -> None:
    """int4 has four fifths of the error of the plain rule (the largest weight at 7), int8 a tenth of that of int4."""
    torch.manual_seed(0)
    weight = torch.randn(96, 200).bfloat16()
    weight[3, 40:90], weight[5] = 0, 0
    errors = {}
    for weights in QUANTISED:
        found = quantise(weight, weights)
        assert found.numbers.shape == weight.shape
        errors[weights] = float((found.dequantised(torch.float64) - weight.double()).square().mean().sqrt())
        assert not found.dequantised(torch.float32)[5].any()
    groups = weight[:, :192].double().view(96, -1, 32)
    step = groups.abs().amax(-1, keepdim=True).clamp_min(1e-9) / 7
    plain = float(((groups / step).round() * step - groups).square().mean().sqrt())
    assert errors["int4"] <= 0.85 * plain
    assert errors["int8"] <= 0.12 * errors["int4"]


@needed
@pytest.mark.parametrize("gate_up", [0, 1])
def test_kernels_round_alike(gate_up: int) -> None:
    """The numbers and scales that the kernels pack are bit for bit those of quantise."""
    torch.manual_seed(0)
    outputs, inputs = 88, 108
    weight = (torch.randn(outputs, inputs) * torch.rand(outputs, 1).exp()).bfloat16()
    weight[3, 32:64], weight[70] = 0, 0
    expected = quantise(weight, "int4")
    lib = library.library()
    assert not isinstance(lib, str)
    shape = decoder.FORMATS["int4"], outputs, inputs, gate_up
    tiles, groups = 3, 4
    memory = torch.empty(lib.ouroboros_packed_size(*shape) + 64, dtype=torch.uint8)
    start = -memory.data_ptr() % 64
    lib.ouroboros_pack(shape[0], weight.data_ptr(), *shape[1:], memory.data_ptr() + start, None)
    packed = memory[start : start + tiles * groups * 576].view(tiles, groups, 9, 64)
    lines = packed[:, :, :8].reshape(tiles, groups, 8, 16, 2, 2)  # two words of inputs, outputs, input, word
    nibbles = torch.stack((lines & 15, lines >> 4), 2)  # tiles, groups, half, pair, output, input, word
    numbers = nibbles.permute(0, 2, 4, 1, 3, 6, 5).reshape(tiles * 32, groups * 32)[:, :inputs]
    scales = packed[:, :, 8].contiguous().view(torch.bfloat16).transpose(1, 2).reshape(tiles * 32, groups)
    places = torch.arange(tiles * 32)
    if gate_up:
        places = torch.stack((places[: tiles * 16].view(-1, 16), 44 + places[: tiles * 16].view(-1, 16)), 1).flatten()
        there = torch.arange(tiles * 16).view(-1, 1, 16).expand(-1, 2, -1).flatten() < 44
    else:
        there = places < outputs
    assert torch.equal(numbers[there], expected.numbers[places[there]])
    assert torch.equal(scales[there], expected.scale[places[there]])
    assert not scales[~there].any()


@needed
@pytest.mark.parametrize("name", NEEDED)
def test_instruction_sets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that the processor has, not the best alone: as exact, and a tree's bits are those of plain decoding."""
    found = library.library(name)
    if isinstance(found, str):
        pytest.skip(found)
    assert found.ouroboros_instructions().decode() == name
    assert library.instructions() in NEEDED
    monkeypatch.setattr(decoder, "library", lambda: found)
    for kind in ("float32", "bfloat16", *QUANTISED):
        dtype = torch.float32 if kind == "float32" else torch.bfloat16
        quantised = kind if kind in QUANTISED else None
        mine = model("grouped", dtype, "kernels", quantised)
        got = score(mine, filled(mine, []), chain(text(50)))
        assert all(torch.equal(a, b) for a, b in zip(got, one_by_one(mine, text(50)), strict=True))
        exact = life(model("grouped", torch.float64, "plain"))
        allowed = {"float32": 1e-5, "bfloat16": 0.06, "int8": 0.12, "int4": 1, "w8a8": 0.16}[kind]
        assert (life(mine) - exact).abs().mean() <= allowed * exact.abs().mean()


@needed
def test_odd_sizes() -> None:
    """fp32 takes any; bf16 works in pairs and leaves odd ones to PyTorch."""
    config = {**BASE, "hidden_size": 71, "intermediate_size": 33}
    tensors = random_weights(config, 3, scale=0.25)

    def make(dtype: torch.dtype, engine: str) -> LlamaModel:
        return LlamaModel(parse_config(config), Weights(tensors), frozenset(), Precision.of(dtype), CPU, engine)

    exact, mine = life(make(torch.float64, "auto")), life(make(torch.float32, "kernels"))
    assert (mine - exact).abs().max() <= 2e-5 * exact.abs().max()
    assert "odd sizes" in make(torch.bfloat16, "auto").info.engine
    config["hidden_size"], config["intermediate_size"] = 72, 34
    tensors = random_weights(config, 3, scale=0.25)
    found = LlamaModel(parse_config(config), Weights(tensors), frozenset(), Precision.of("int4"), CPU)
    assert "no multiples of 4" in found.info.engine
    assert life(found).isfinite().all()


# --------------------------------------------------------------------------------------- rows do not know each other


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@needed
@pytest.mark.parametrize("kind", ["float32", "bfloat16", *QUANTISED])
@pytest.mark.parametrize(
    "variant", ["grouped", "one key head", "window", "mixed windows", "qwen3", "round sizes", "gemma2"]
)
def test_trees_have_the_bits_of_plain_decoding(variant: str, kind: str, threads: int) -> None:
    """Every node, whatever the size of its tree and of the pieces before it: the bits of one token at a time."""
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    mine = model(variant, dtype, "kernels", kind if kind in QUANTISED else None)
    written = text(45)
    same_bits_in_pieces(mine, written, ([45], [1, 44], [17, 28], [30, 2, 13]))
    tree = random_tree(33, 4)
    whole = filled(mine, written)
    got = score(mine, whole, tree)
    for node in (0, 7, 20, 32):
        assert torch.equal(got[node], one_by_one(mine, [*written, tree.tokens[0], *tree.path_tokens(node)])[-1])
    # and so does the text behind a committed path that had to be moved
    whole.commit(tree.path(32))
    committed = [*written, tree.tokens[0], *tree.path_tokens(32)]
    after = score(mine, whole, random_tree(5, 6), catch_up=[1, 2])
    behind = [*committed, 1, 2, random_tree(5, 6).tokens[0]]
    assert torch.equal(after[0], one_by_one(mine, behind)[-1])


@needed
@pytest.mark.parametrize("weights", QUANTISED)
@pytest.mark.parametrize("method", METHODS)
def test_methods_write_what_plain_decoding_writes(method: str, weights: str) -> None:
    target = model("grouped", torch.bfloat16, "kernels", weights)
    draft = model("window", torch.bfloat16, "kernels", weights) if method in NEEDS_DRAFT else None
    chosen: tuple[dict[str, Any], ...] = ({}, {"temperature": 0.8, "top_p": 0.9})
    for settings in chosen:
        texts = [
            Decoder(target, used, None, name, options_for(name, None), None)
            .generate([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 3, 1, 4, 1], max_new_tokens=60, seed=7, **settings)
            .token_ids
            for name, used in (("autoregressive", None), (method, draft))
        ]
        assert texts[0] == texts[1]


@needed
@pytest.mark.parametrize("dtype", TYPES)
def test_sequences_do_not_know_each_other(dtype: str) -> None:
    mine = model("grouped", getattr(torch, dtype), "kernels")
    lengths = (0, 40, 5, 70)
    trees = [random_tree(size, size) for size in (4, 19, 1, 30)]
    alone = [score(mine, filled(mine, text(n, n)), tree) for n, tree in zip(lengths, trees, strict=True)]
    slots = [filled(mine, text(n, n)) for n in lengths]
    together = mine.score([ScoreRequest(slot, tree) for slot, tree in zip(slots, trees, strict=True)])
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@needed
def test_a_tree_that_grows() -> None:
    mine, tree = model("grouped", torch.bfloat16, "kernels"), random_tree(20, 3)
    whole = score(mine, filled(mine, text(9)), tree)
    slot, small = filled(mine, text(9)), tree.select(range(8))
    first = score(mine, slot, small)
    rest = score(mine, slot, tree, rows=[19, 8, 11])
    assert torch.equal(first, whole[:8])
    assert torch.equal(rest, whole[[19, 8, 11]])


# ------------------------------------------------------------------------------------------------- without kernels


def test_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder says what computes and why, and refuses only what was asked for by name."""
    monkeypatch.setattr(decoder, "library", lambda: "no C++ compiler (g++ not found)")
    plain = model("grouped", torch.float32, "auto")
    assert plain.info.engine == "plain (no C++ compiler (g++ not found))"
    assert life(plain).shape == (39, VOCAB)
    with pytest.raises(InputError, match=r"cannot be had here: no C\+\+ compiler"):
        model("grouped", torch.bfloat16, "kernels")
    with pytest.raises(InputError, match="engine must be"):
        model("grouped", torch.float32, "fast")


def test_other_types_are_for_operators() -> None:
    assert model("grouped", torch.float16, "auto").info.engine.startswith("plain (no kernels for float16")


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory; ``library.library.__wrapped__`` looks there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ouroboros" / "kernels"


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


find: Any = library.library.__wrapped__


@needed
def test_why_there_are_none(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert find() == "no C++ compiler (no-such-compiler not found)"
    monkeypatch.setenv("CXX", script(tmp_path / "broken", "echo 'x.h: error: what is this' >&2; exit 1"))
    assert find() == "broken failed: x.h: error: what is this"
    monkeypatch.setenv("CXX", script(tmp_path / "liar", "exit 0"))
    assert isinstance(find(), str)  # an empty file is no library
    monkeypatch.setattr(library, "NEEDED", {"avx1024": ("avx1024f",), "avx2": ("avx1024",)})
    assert find() == "the processor lacks avx1024"


@needed
def test_cache(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled once, whole files only, made anew when damaged; and elsewhere when the directory cannot be had."""
    built = library.library()
    assert not isinstance(built, str)
    log = tmp_path / "log"
    # in place of the compiler's three seconds: the library that it made before
    monkeypatch.setenv("CXX", script(tmp_path / "copy", f'echo once >> {log}; cp {built._name} "$3"'))
    assert not isinstance(find(), str)
    assert not isinstance(find(), str)
    assert log.read_text().split() == ["once"]
    (file,) = fresh.iterdir()
    elsewhere = tmp_path / "elsewhere" / "ouroboros" / "kernels"
    elsewhere.mkdir(parents=True)
    (elsewhere / file.name).write_bytes(b"half a library")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert not isinstance(find(), str)
    assert log.read_text().split() == ["once", "once"]
    assert [entry.name for entry in elsewhere.iterdir()] == [file.name]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert not isinstance(find(), str)
    assert not isinstance(find(), str)
    assert log.read_text().split() == ["once"] * 3, "the temporary directory keeps it for this user"
    (own,) = tmp_path.glob("ouroboros-kernels-*")
    own.chmod(0o777)  # anybody may have put code there
    assert not isinstance(find(), str)
    assert log.read_text().split() == ["once"] * 4


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("shape", [(64, 128), (96, 160), (50, 70), (33, 31)], ids=str)
@pytest.mark.parametrize("weights", QUANTISED)
def test_rounded_linear(weights: str, shape: tuple[int, int], device: str) -> None:
    """Whether PyTorch's operators take the shape or not, for few rows and many."""
    torch.manual_seed(0)
    weight = torch.randn(shape).bfloat16().to(device)
    bias = torch.randn(shape[0]).bfloat16().to(device)
    exact = quantise(weight, weights).dequantised(torch.float64)
    layer = linear(weight, bias, weights)
    for rows in (1, 5, 40):
        x = torch.randn(rows, shape[1]).bfloat16().to(device)
        expected = x.double() @ exact.T + bias.double()
        assert (layer(x).double() - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.skipif(not packs(torch.bfloat16, CPU), reason="oneDNN packs no bfloat16 here")
@pytest.mark.parametrize("bias", [True, False])
def test_packed_linear(bias: bool) -> None:
    torch.manual_seed(0)
    weight, offset = torch.randn(48, 64).bfloat16(), torch.randn(48).bfloat16() if bias else None
    for rows in (1, 5, 33):
        x = torch.randn(rows, 64).bfloat16()
        a, b = (linear(weight, offset, how)(x).float() for how in ("packed", "plain"))
        assert (a - b).abs().max() <= 0.01 * b.abs().max()
    exact = life(model("biases", torch.float64, "plain"))
    found = model("biases", torch.bfloat16, "packed")
    assert found.info.engine == "packed (not asked for)"
    assert (life(found) - exact).abs().mean() <= 0.1 * exact.abs().mean()
