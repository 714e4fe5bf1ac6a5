"""Every family that the native decoder takes, against transformers' own model of it (eager attention).

The checkpoints are random and written by transformers; the way of comparing is test_native_decoder's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import ouroboros.models.llama
from ouroboros.models.attention import visible_rows
from ouroboros.models.base import ScoreRequest
from ouroboros.models.families import FAMILIES, parse_config
from ouroboros.models.loading import load_directory, load_module
from ouroboros.models.rotary import rotary_frequencies
from ouroboros.tree import Origin
from tests.pairs import unsettled
from tests.test_native_decoder import (
    BASE,
    CPU,
    VOCAB,
    YARN,
    Both,
    any_life,
    chain,
    close,
    filled,
    grow,
    life_cycle,
    random_tree,
    score,
    text,
)

SLIDING, FULL = "sliding_attention", "full_attention"
# Windows of 16, where the common life of a model is 20 to 40 tokens long and the long one 1,100.
QWEN_WINDOW: Mapping[str, Any] = {"use_sliding_window": True, "sliding_window": 16}
# Caps that are felt, where scores and logits of random models are a few units wide.
GEMMA: Mapping[str, Any] = {"sliding_window": 16, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 4.0}
GEMMA3: Mapping[str, Any] = {"sliding_window": 16, "final_logit_softcapping": 4.0, "sliding_window_pattern": 2}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "Llama 2": {"model_type": "llama", "num_key_value_heads": 4, "rms_norm_eps": 1e-5},
    "DeepSeek-coder": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000},
    },
    "Yi": {"model_type": "llama", "num_key_value_heads": 1, "rope_parameters": {"rope_theta": 5000000.0}},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 12},
    "mistral, window": {"model_type": "mistral", "sliding_window": 16},
    "mistral, window of 1": {"model_type": "mistral", "sliding_window": 1},
    "mistral, layer types": {
        "model_type": "ministral",
        "head_dim": 8,
        "layer_types": [SLIDING, FULL],
        "sliding_window": 5,
    },
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2, yarn": {"model_type": "qwen2", "rope_parameters": dict(YARN)},
    "qwen2, window": {"model_type": "qwen2", "max_window_layers": 1, **QWEN_WINDOW},
    "qwen2, layer types": {"model_type": "qwen2", "layer_types": [SLIDING, FULL], **QWEN_WINDOW},
    "qwen3": {"model_type": "qwen3", "head_dim": 12},
    "qwen3, bias, tied": {"model_type": "qwen3", "head_dim": 8, "attention_bias": True, "tie_word_embeddings": True},
    "qwen3, window": {"model_type": "qwen3", "head_dim": 8, "max_window_layers": 0, **QWEN_WINDOW},
    "phi3": {"model_type": "phi3"},
    "phi3, window": {"model_type": "phi3", "sliding_window": 16},
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 4},
    "smollm3, window": {"model_type": "smollm3", "no_rope_layers": [0, 1], "attention_bias": True, **QWEN_WINDOW},
    "seed_oss": {"model_type": "seed_oss", "head_dim": 12},
    "seed_oss, biases": {"model_type": "seed_oss", "head_dim": 12, "attention_out_bias": True, "mlp_bias": True},
    "granite": {
        "model_type": "granite",
        "attention_multiplier": 0.11,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "logits_scaling": 6.0,
        "tie_word_embeddings": True,
    },
    "gemma2, window": {"model_type": "gemma2", "head_dim": 12, "query_pre_attn_scalar": 5, **GEMMA},
    "gemma2, no caps": {
        "model_type": "gemma2",
        "head_dim": 8,
        "attention_bias": True,
        **GEMMA,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "tie_word_embeddings": False,
    },
    "gemma3, window": {"model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 20, **GEMMA3},
    "gemma3, linear rope": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "layer_types": [FULL, SLIDING],
        **GEMMA3,
        "rope_parameters": {
            FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
            SLIDING: {"rope_type": "default", "rope_theta": 70.0},
        },
    },
}
WINDOWED = tuple(name for name in MODELS if "window" in name or "layer types" in name)


def random_model(name: str) -> PreTrainedModel:
    """Nothing is left at its neutral value: transformers begins with norms of 1 and biases of 0."""
    torch.manual_seed(1)
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    config = AutoConfig.for_model(**{**BASE, **ends, **MODELS[name]})
    module: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return unsettled(module)


def read_twice(path: Path) -> Both:
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return Both(load_directory(path, "float32", CPU), theirs.eval())


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Both]:
    """A model by name, on disk in several shards, read by both sides."""

    @cache
    def load(name: str) -> Both:
        path = tmp_path_factory.mktemp("checkpoint")
        random_model(name).save_pretrained(path, max_shard_size="20KB")
        assert len(list(path.glob("model-*.safetensors"))) > 1
        return read_twice(path)

    return load


def test_all_families_are_here() -> None:
    assert {changes["model_type"] for changes in MODELS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", MODELS)
def test_life_cycle(load: Callable[[str], Both], name: str) -> None:
    life_cycle(load(name))


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", MODELS)
def test_stored_types(tmp_path: Path, name: str, stored: str) -> None:
    random_model(name).to(getattr(torch, stored)).save_pretrained(tmp_path)
    life_cycle(read_twice(tmp_path))


@pytest.mark.parametrize("name", MODELS)
def test_long_text(load: Callable[[str], Both], name: str) -> None:
    """Past 1,000 positions in three chunks; a tree, a commit, another tree, and back to a shorter text."""
    pair, written, tree = load(name), text(1100), random_tree(10, 6)
    deepest = max(range(11), key=tree.depths.__getitem__)
    slot = filled(pair.native, written)
    pair.check(score(pair.native, slot, tree, rows=[0, deepest]), written, tree, [0, deepest])
    slot.commit(tree.path(deepest))
    more = [*written, tree.tokens[0], *tree.path_tokens(deepest)]
    pair.check(score(pair.native, slot, tree, rows=[10]), more, tree, [10])
    slot.rewind(1001)
    pair.check(score(pair.native, slot, tree, rows=[deepest]), written[:1001], tree, [deepest])


@pytest.mark.parametrize("name", ["qwen2", "qwen3, window", "phi3, window", "smollm3", "granite", "seed_oss",
                                  "gemma2, window", "gemma3, linear rope"])  # fmt: skip
def test_loaded_module(name: str) -> None:
    module = random_model(name)
    life_cycle(Both(load_module(module, "auto", "auto"), module))


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "phi3", "smollm3", "seed_oss, biases", "granite"])
def test_parameters_are_counted_once(load: Callable[[str], Both], name: str) -> None:
    assert load(name).native.info.parameters == load(name).theirs.num_parameters()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["mistral, window", "qwen2", "qwen3", "granite", "gemma2, window", "gemma3, window"])
def test_rounding(load: Callable[[str], Both], tmp_path: Path, name: str, dtype: str) -> None:
    """The mean error in a narrow type is no larger than what transformers makes of the same type."""
    kind = getattr(torch, dtype)
    module, ids = random_model(name), torch.tensor([text(40)])
    module.save_pretrained(tmp_path)
    with torch.inference_mode():
        exact, other = module.double()(ids).logits[0], module.to(kind)(ids).logits[0].double()
    model = load_directory(tmp_path, kind, CPU)
    mine = score(model, model.open(), chain(text(40))).double()
    assert (mine - exact).abs().mean() <= 1.3 * (other - exact).abs().mean()


# --------------------------------------------------------------------------------------------------------- windows


def test_windows_are_felt(load: Callable[[str], Both]) -> None:
    """The models above do have their windows, so that equality says something: an early token is out of reach."""
    reach = {"mistral, window": 30, "mistral, window of 1": 0, "qwen3, window": 30, "phi3, window": 30}
    for name, far in reach.items():
        model = load(name).native
        answers = []
        for changed in (99, 99 - far, 98 - far):
            written = text(100)
            written[changed] = (written[changed] + 1) % VOCAB
            answers.append(score(model, model.open(), chain(written), rows=[99]))
        unchanged = score(model, model.open(), chain(text(100)), rows=[99])
        assert not torch.equal(answers[0], unchanged)
        assert not torch.equal(answers[1], unchanged)
        close(answers[2], unchanged, 1e-6)
    for name in ("mistral, layer types", "qwen2, window", "qwen2, layer types", "smollm3, window", "gemma2, window",
                 "gemma3, window", "gemma3, linear rope"):  # fmt: skip
        assert len(load(name).native.config.windows) == 1


@pytest.mark.parametrize("changes", [{"attn_logit_softcapping": None}, {"final_logit_softcapping": None}])
def test_caps_are_felt(changes: Mapping[str, Any]) -> None:
    module = random_model("gemma2, window")
    capped, slot = load_module(module, "auto", "auto"), chain(text(40))
    module.config.update(dict(changes))
    free = load_module(module, "auto", "auto")
    assert capped.config != free.config
    one, other = (score(model, model.open(), slot) for model in (capped, free))
    assert (one - other).abs().max() > 0.05 * one.abs().max()


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("held", [0, 3, 15, 16, 17, 50])
def test_trees_about_a_window(load: Callable[[str], Both], name: str, held: int) -> None:
    """The root before, at and past the window's end; branches that end before, at and past it."""
    pair, source, written = load(name), random.Random(held), text(held)
    slot, tree = filled(pair.native, written), chain(text(20, 1))
    for parent in (0, 3, 12, 14, 15, 16, 19):
        grow(tree, 1, source)
        tree.extend(parent, text(4, parent), Origin.DRAFT)
    pair.check(score(pair.native, slot, tree), written, tree, range(len(tree)))
    done = len(tree)  # a second score of the tree sees pending rows of either side of its window
    tree.extend(done - 1, text(3, 7), Origin.DRAFT)
    tree.extend(2, text(3, 8), Origin.DRAFT)
    pair.check(score(pair.native, slot, tree), written, tree, range(done, len(tree)))
    done = len(tree)  # one of nodes that all lie deep
    tree.extend(done - 10, text(2, 9), Origin.DRAFT)
    pair.check(score(pair.native, slot, tree), written, tree, range(done, len(tree)))
    path = tree.path(len(tree) - 1)
    slot.commit(path)
    committed, after = written + [tree.tokens[node] for node in path], random_tree(9, 3)
    pair.check(score(pair.native, slot, after), committed, after, range(10))
    slot.rewind(held // 2)
    pair.check(score(pair.native, slot, after), written[: held // 2], after, range(10))


@pytest.mark.parametrize("size", [1, 5, 16, 40])
def test_chunks_and_windows(load: Callable[[str], Both], monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(ouroboros.models.llama, "PREFILL_CHUNK", size)
    pair, tree = load("qwen2, window"), random_tree(6, 2)
    slot = filled(pair.native, text(70))
    pair.check(score(pair.native, slot, tree), text(70), tree, range(7))


@pytest.mark.parametrize("held", [0, 9, 40])
def test_catch_up_and_windows(load: Callable[[str], Both], held: int) -> None:
    pair, tree, written = load("mistral, window"), random_tree(10, 3), text(held + 25)
    slot = filled(pair.native, written[:held])
    got = score(pair.native, slot, tree, catch_up=written[held:])
    pair.check(got, written, tree, range(11))


def test_slots_of_unlike_lengths(load: Callable[[str], Both]) -> None:
    pair, trees = load("mistral, layer types"), [random_tree(n, n) for n in (0, 7, 12)]
    texts = [text(40, 1), text(3, 2), text(16, 3)]
    requests = [ScoreRequest(filled(pair.native, t), tree) for t, tree in zip(texts, trees, strict=True)]
    for got, written, tree in zip(pair.native.score(requests), texts, trees, strict=True):
        pair.check(got, written, tree, range(len(tree)))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False))
def test_any_life(load: Callable[[str], Both], source: random.Random) -> None:
    any_life(load("mistral, layer types"), source)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False))
def test_visible_rows(source: random.Random) -> None:
    """The rule itself, row by row: a key's position is more than window - 1 before the query's, or not in its past."""
    committed, window = source.randint(0, 12), source.choice([1, 2, 5, 9, 100])
    tree = random_tree(source.randint(0, 12), source.randrange(1000))
    pending = source.choice([0, source.randint(0, len(tree) - 1)])
    late = source.randint(0, 6) if pending == 0 else 0
    whole = source.random() < 0.8 or late == 0  # else a chunk of a prompt, without a tree
    nodes = len(tree) if whole else 0
    root = committed + late
    positions = [*range(root), *(root + depth for depth in tree.depths[:nodes])]
    ancestors = tree.ancestor_mask()
    queries = [*range(committed, root), *range(root + pending, root + nodes)]
    past = np.array([[k <= q if k < root or q < root else ancestors[q - root, k - root] for k in range(len(positions))]
                     for q in queries])  # fmt: skip
    near = np.array([[positions[q] - positions[k] <= window - 1 for k in range(len(positions))] for q in queries])
    views = visible_rows(committed, late, tree if whole else None, pending, [None, window])
    for view, expected in ((views[None], past), (views[window], past & near)):
        got = np.zeros_like(expected)
        got[:, view.first :] = True if view.mask is None else view.mask.numpy()
        assert np.array_equal(got, expected)


# ---------------------------------------------------------------------------------------------------------- configs

SIZES = {"vocab_size": 99, "hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 6}
# As in published checkpoints: what transformers 4 wrote, and what their makers left out.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "Mistral 0.1": {"model_type": "mistral", "num_key_value_heads": 8, "rope_theta": 10000.0, "sliding_window": 4096},
    "Mistral 0.3": {"model_type": "mistral", "num_key_value_heads": 8, "rope_theta": 1e6, "sliding_window": None},
    "Qwen2.5": {
        "model_type": "qwen2",
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_mrope": False,
        "use_sliding_window": False,
    },
    "Qwen2.5, long": {"model_type": "qwen2", "rope_scaling": {"factor": 4.0, "type": "yarn"}, **QWEN_WINDOW},
    "Qwen3": {
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 128,
        "max_window_layers": 28,
        "num_key_value_heads": 8,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
    "Phi 3": {"model_type": "phi3", "rope_scaling": None, "sliding_window": 2047, "attention_bias": False},
    "SmolLM3": {
        "model_type": "smollm3",
        "no_rope_layers": [1, 1, 1, 0, 1, 1],
        "layer_types": [FULL] * 6,
        "rope_theta": 5000000.0,
        "use_sliding_window": False,
    },
    "Gemma 2": {
        "model_type": "gemma2",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 224,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "cache_implementation": "hybrid",
    },
    "Gemma 3, 4.5x": {
        "model_type": "gemma3_text",
        "rope_theta": 1000000,
        "rope_local_base_freq": 12000,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window": 512,
        "sliding_window_pattern": 4,
        "final_logit_softcapping": None,
    },
    "Gemma 3": {
        "model_type": "gemma3_text",
        "layer_types": [SLIDING] * 5 + [FULL],
        "_sliding_window_pattern": 6,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "use_bidirectional_attention": False,
    },
    "nulls": {"model_type": "qwen2", "num_key_value_heads": None, "head_dim": None, "rope_scaling": None},
    "window from a layer on": {"model_type": "qwen3", "max_window_layers": 4, **QWEN_WINDOW},
}


@pytest.mark.parametrize("raw", [*PUBLISHED.values(), *({"model_type": kind} for kind in FAMILIES)], ids=str)
def test_defaults_are_those_of_transformers(raw: Mapping[str, Any]) -> None:
    """What config.json lacks: transformers' own config of the same keys, which holds them all, must mean the same."""
    given: dict[str, Any] = {**SIZES, "num_attention_heads": 32, **raw}
    config = AutoConfig.for_model(**given)
    mine, theirs = parse_config(given), parse_config(json.loads(json.dumps(config.to_dict())))
    assert replace(mine, rope={}) == replace(theirs, rope={})
    frequencies = [rotary_frequencies(8, one.rope, one.max_position_embeddings) for one in (mine, theirs)]
    assert frequencies[0][1] == frequencies[1][1]
    assert torch.equal(frequencies[0][0], frequencies[1][0])
