"""Forwards of fixed shapes: the logits of the operators' decoder, whatever the bucket; on CUDA as graphs."""

from __future__ import annotations

import gc
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ouroboros import Decoder, OuroborosOptions, SamplingParams
from ouroboros.models.base import ScoreRequest
from ouroboros.models.buffers import BufferPool
from ouroboros.models.kv_cache import KVCache
from ouroboros.models.llama import LlamaModel
from ouroboros.models.loading import parse_config
from ouroboros.models.quantised import QUANTISED, Precision
from ouroboros.models.static import ROWS, StaticDecoder
from ouroboros.phrases.memory import Memory
from ouroboros.tree import Origin, TokenTree
from tests.pairs import Pair, Weights, random_weights, tiny_config
from tests.reference import generate

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "one key head": {"num_key_value_heads": 1},
    "windows": {"model_type": "mistral", "sliding_window": 9},
    "q/k norms": {"model_type": "qwen3", "head_dim": 6},
    "biases, tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "multipliers": {"model_type": "granite", "embedding_multiplier": 3.0, "residual_multiplier": 0.5,
                    "attention_multiplier": 0.3, "logits_scaling": 2.0},
    "caps": {"model_type": "gemma2", "head_dim": 6, "sliding_window": 9, "attn_logit_softcapping": 2.0},
    "two ropes": {"model_type": "gemma3_text", "head_dim": 6, "sliding_window": 9, "sliding_window_pattern": 2},
}  # fmt: skip


def model(
    name: str, engine: str, device: str = "cpu", dtype: torch.dtype = torch.float32, quantised: str | None = None
) -> LlamaModel:
    config = {**tiny_config(), **CONFIGS[name]}
    weights = Weights(random_weights(config, 5))
    place = torch.device(device)
    return LlamaModel(parse_config(config), weights, frozenset(), Precision.of(quantised or dtype), place, engine)


def random_tree(generator: random.Random, root: int, nodes: int) -> TokenTree:
    tree = TokenTree(root)
    while len(tree) < nodes:
        tree.add(generator.randrange(max(0, len(tree) - 4), len(tree)), generator.randrange(40), Origin.DRAFT)
    return tree


def run(model: LlamaModel, seed: int) -> list[torch.Tensor]:
    """A life of a slot: prefill, trees that grow, catch-up, commits, rewinds; the logits of all of it."""
    generator = random.Random(seed)
    slot = model.open()
    model.prefill(slot, [generator.randrange(40) for _ in range(30)])
    out = []
    for turn in range(12):
        size = generator.choice([1, 2, 5, 17, 33])
        tree = random_tree(generator, generator.randrange(40), size)
        catch_up = [generator.randrange(40) for _ in range(turn % 3)]
        rows = None if turn % 2 else sorted(generator.sample(range(size), k=min(3, size)))
        out += model.score([ScoreRequest(slot, tree, rows, catch_up)])
        end = len(tree)
        while len(tree) < end + 4:
            tree.add(generator.randrange(len(tree)), generator.randrange(40), Origin.DRAFT)
        if len(tree) > end:
            out += model.score([ScoreRequest(slot, tree)])
        slot.truncate(end)
        path = tree.path(generator.randrange(end))
        slot.commit(path)
        if turn % 5 == 4:
            slot.rewind(slot.length - 7)
    return out


def check(name: str, device: str) -> None:
    for seed in range(3):
        plain, static = run(model(name, "plain", device), seed), run(model(name, "static", device), seed)
        assert len(plain) == len(static) > 12
        for expected, got in zip(plain, static, strict=True):
            assert got.shape == expected.shape
            assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_operators_logits(name: str) -> None:
    check(name, "cpu")


class Recorder(TorchDispatchMode):
    """Which operators run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func).removeprefix("aten."))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_captured_stays_on_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads no value, makes no tensor of Python's numbers and no shape that depends on values."""
    recorder, compute = Recorder(), StaticDecoder._compute

    def recorded(*args: Any) -> Any:
        with recorder:
            return compute(*args)

    monkeypatch.setattr(StaticDecoder, "_compute", recorded)
    run(model(name, "static"), 0)
    assert "index_copy_.default" in recorder.names
    forbidden = ("_local_scalar_dense", "is_nonzero", "lift_fresh", "nonzero", "where.Scalar", "scalar_tensor")
    assert not [name for name in recorder.names if name.startswith(forbidden)]


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_the_operators_logits_as_graphs(name: str) -> None:
    assert model(name, "auto", "cuda").info.engine == "static, CUDA graphs"
    check(name, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["float16", "bfloat16", *QUANTISED])
def test_other_types_as_graphs(kind: str) -> None:
    """The graphs' logits are those of the same operators one by one, to what these types round."""
    quantised = kind if kind in QUANTISED else None
    dtype = torch.bfloat16 if quantised else getattr(torch, kind)
    exact, plain, graphs = (
        torch.cat(run(made, 0)).double()
        for made in (
            model("windows", "plain", "cuda", torch.float64),
            model("windows", "plain", "cuda", dtype, quantised),
            model("windows", "auto", "cuda", dtype, quantised),
        )
    )
    noise = (plain - exact).abs().mean()
    assert 0 < noise < exact.abs().mean()
    assert (graphs - plain).abs().mean() <= 2 * noise


def decoded(engine: str, device: str, settings: Mapping[str, Any]) -> list[Sequence[int]]:
    target, draft = model("llama", engine, device), model("windows", engine, device)
    decoder = Decoder(target, draft, None, "ouroboros", OuroborosOptions(), Memory())
    prompts = [[1, 2, 3], [5] * 40, [7, 8] * 30]
    return [decoder.generate(p, max_new_tokens=60, seed=3, **settings).token_ids for p in prompts]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9}, {"guidance_scale": 2.0}], ids=str)
def test_decoding_is_the_same(settings: dict[str, Any]) -> None:
    assert decoded("static", "cpu", settings) == decoded("plain", "cpu", settings)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9}, {"guidance_scale": 2.0}], ids=str)
def test_decoding_is_the_same_as_graphs(settings: dict[str, Any]) -> None:
    assert decoded("auto", "cuda", settings) == decoded("plain", "cuda", settings)


def test_the_oracles_tokens(tiny: Pair) -> None:
    config = tiny_config()
    weights = Weights(random_weights(config, 1))
    target = LlamaModel(
        parse_config(config), weights, frozenset(), Precision.of("float64"), torch.device("cpu"), engine="static"
    )
    decoder = Decoder(target, tiny.drafts["similar"], None, "ouroboros", OuroborosOptions(), Memory())
    for temperature in (0.0, 1.0):
        params = SamplingParams(max_new_tokens=50, temperature=temperature, seed=5)
        result = decoder.generate([3, 1, 4], params)
        assert result.token_ids == generate(tiny.oracle, [3, 1, 4], params, 5)
        assert 0 < result.stats.accepted_tokens < result.stats.draft_tokens


def test_results_outlive_the_next_forward() -> None:
    static = model("llama", "static")
    slot = static.open()
    first = static.score([ScoreRequest(slot, TokenTree(3))])[0]
    kept = first.clone()
    slot.commit([0])
    static.score([ScoreRequest(slot, TokenTree(4))])
    assert torch.equal(first, kept)


def test_sequences_beside_each_other_and_long_trees() -> None:
    plain, static = model("llama", "plain"), model("llama", "static")
    generator = random.Random(1)
    trees = [random_tree(generator, 3, 5), random_tree(generator, 4, ROWS[-1] + 9), random_tree(generator, 4, ROWS[-1])]
    for requests in ([0, 1], [1], [2]):
        both = []
        for one in (plain, static):
            slots = [one.open() for _ in requests]
            both.append(one.score([ScoreRequest(slot, trees[i]) for slot, i in zip(slots, requests, strict=True)]))
        for expected, got in zip(*both, strict=True):
            assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_buffers_come_back() -> None:
    pool = BufferPool()
    cache = KVCache((1, 2, 4), torch.float32, torch.device("cpu"), step=8, buffers=pool)
    cache.reserve(5)
    place = cache.buffer.data_ptr()
    assert cache.capacity == 8
    assert not cache.buffer.any()
    other = KVCache((1, 2, 4), torch.float32, torch.device("cpu"), step=8, buffers=pool)
    other.reserve(20)
    assert other.buffer.data_ptr() != place
    assert other.capacity == 24
    del cache
    gc.collect()
    third = KVCache((1, 2, 4), torch.float32, torch.device("cpu"), step=8, buffers=pool)
    third.reserve(3)
    assert third.buffer.data_ptr() == place
    third.reserve(9)  # too small now: another one is taken, and the first is free again
    assert third.buffer.data_ptr() != place
    fourth = KVCache((1, 2, 4), torch.float32, torch.device("cpu"), step=8, buffers=pool)
    fourth.reserve(8)
    assert fourth.buffer.data_ptr() == place
