"""Grown checkpoints say what the small ones say, and cost what their size costs.

Logits are compared for trees behind a prefill, in fp64 for exactness of the construction, in fp32 for the bound of 1e-5
of the logits' scale, in bf16 token by token; written checkpoints are compared in transformers too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import ouroboros
from ouroboros.errors import InputError, LoadError, OuroborosError
from ouroboros.models.base import ScoreRequest
from ouroboros.models.config import DecoderConfig
from ouroboros.models.families import parse_config
from ouroboros.models.grow import PRESETS, GrownShape, GrownWeights, grown_config, load_grown, write_grown
from ouroboros.models.llama import LlamaModel
from ouroboros.models.loading import load_directory
from ouroboros.models.quantised import Precision
from ouroboros.tree import Origin, TokenTree
from tests.pairs import CPU, EMBEDDED, Weights, random_weights, tiny_config

PROMPT = "def fibonacci(n):\n    "
TARGET, DRAFT = EMBEDDED / "target", EMBEDDED / "draft"
# Ratios of four: nothing rounds otherwise. Then of seven, with copies or the constant, and heads of twice the size.
EXACT = {TARGET: GrownShape(8, 1024, 900, 16, 8, 64), DRAFT: GrownShape(6, 640, 500, 12, 6, 128)}
ODD = {TARGET: GrownShape(7, 1792, 720, 8, 8, 128, 8300), DRAFT: GrownShape(5, 512, 448, 20, 10, 64, 8300)}

SMALL = tiny_config()  # 2 layers × 16, inner 24, 4 heads (2 for keys) × 4, 40 tokens
GQA = GrownShape(4, 64, 40, 8, 4, 4)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 2.0,
    "high_freq_factor": 8.0,
    "original_max_position_embeddings": 32,
}
BIAS = {"attention_bias": True, "mlp_bias": True}
GRANITE = {"attention_multiplier": 0.4, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}
CASES: Mapping[str, tuple[Mapping[str, Any], GrownShape]] = {
    "as it is": ({}, GrownShape(2, 16, 24, 4, 2, 4)),
    "layers": ({}, GrownShape(5, 16, 24, 4, 2, 4)),
    "heads": ({}, GrownShape(2, 16, 24, 12, 3, 4)),
    "smaller groups": ({"num_key_value_heads": 1}, GrownShape(2, 16, 24, 12, 6, 4)),
    "larger groups": ({"num_key_value_heads": 4}, GrownShape(2, 16, 24, 21, 7, 4)),
    "inner": ({}, GrownShape(2, 16, 57, 4, 2, 4)),
    "head size × 2": ({}, GrownShape(2, 16, 24, 4, 2, 8)),
    "head size × 3": ({}, GrownShape(2, 16, 24, 4, 2, 12)),
    "head size × 4": ({}, GrownShape(2, 16, 24, 4, 2, 16)),
    "head size, llama3": ({"rope_scaling": LLAMA3}, GrownShape(2, 16, 24, 4, 2, 16)),
    "hidden × 4": ({}, GrownShape(2, 64, 24, 4, 2, 4)),
    "hidden × 7, copied": ({}, GrownShape(2, 112, 24, 4, 2, 4)),
    "hidden × 28, copied and padded": ({}, GrownShape(2, 448, 24, 4, 2, 4)),
    "hidden × 2.5": ({}, GrownShape(2, 40, 24, 4, 2, 4)),
    "vocabulary": ({}, GrownShape(2, 64, 24, 4, 2, 4, 50)),
    "all": ({}, GrownShape(5, 112, 40, 14, 7, 8, 50)),
    "tied": ({"tie_word_embeddings": True}, GrownShape(3, 128, 40, 8, 4, 4, tie_word_embeddings=True)),
    "tied no more": ({"tie_word_embeddings": True}, GrownShape(3, 128, 40, 8, 4, 4, 50)),
    "biases": ({**BIAS}, GrownShape(5, 112, 40, 14, 7, 8, 50)),
    "qwen2": ({"model_type": "qwen2"}, GrownShape(4, 112, 40, 14, 7, 8)),
    "qwen3": ({"model_type": "qwen3", "head_dim": 8, **BIAS}, GrownShape(4, 112, 40, 14, 7, 8)),
    "qwen3, vocabulary": ({"model_type": "qwen3", "head_dim": 8}, GrownShape(4, 112, 40, 14, 7, 8, 50)),
    "mistral": ({"model_type": "mistral", "sliding_window": 5}, GQA),
    "smollm3": (
        {"model_type": "smollm3", "no_rope_layer_interval": 2, "tie_word_embeddings": False, "pad_token_id": None},
        GQA,
    ),
    "seed_oss": ({"model_type": "seed_oss", "head_dim": 4}, GQA),
    "granite": ({"model_type": "granite", **GRANITE}, GrownShape(4, 112, 40, 14, 7, 8, 50)),
}


def logits(model: LlamaModel, tokens: Sequence[int]) -> Tensor:
    """Behind the nodes of a tree with two branches, after a prefill."""
    slot = model.open()
    model.prefill(slot, tokens[:-5])
    tree = TokenTree(tokens[-5])
    first = tree.add(0, tokens[-4], Origin.DRAFT)
    tree.add(first, tokens[-3], Origin.DRAFT)
    tree.extend(0, tokens[-3:], Origin.DRAFT)
    return model.score([ScoreRequest(slot, tree)])[0]


def text(vocab_size: int, length: int = 40) -> list[int]:
    ids: list[int] = torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(5)).tolist()
    return ids


def away(theirs: Tensor, ours: Tensor) -> float:
    """The largest difference as a share of the scale; grown vocabularies add -inf and nothing else."""
    size = theirs.shape[-1]
    assert bool((ours[..., size:] == -math.inf).all())
    return float((theirs.double() - ours[..., :size].double()).abs().max() / theirs.double().abs().max())


def both(more: Mapping[str, Any], shape: GrownShape, dtype: torch.dtype) -> tuple[LlamaModel, LlamaModel]:
    raw = {**SMALL, **more}
    small, weights = parse_config(raw), Weights(random_weights(raw, 7))
    large = grown_config(small, shape)
    grown = GrownWeights(small, weights, large, dtype, CPU)
    return tuple(  # type: ignore[return-value]
        LlamaModel(config, source, frozenset(), Precision.of(dtype), CPU)
        for config, source in ((small, weights), (large, grown))
    )


@pytest.mark.parametrize("name", CASES)
def test_same_logits(name: str) -> None:
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        small, large = both(*CASES[name], dtype)
        assert away(logits(small, text(40)), logits(large, text(40))) < bound
        assert large.info.parameters == large.config.parameters()


class Loud:
    """Grown weights with other, large numbers in every place whose content must not matter."""

    def __init__(self, small: DecoderConfig, weights: Weights, large: DecoderConfig, padding: slice) -> None:
        self.seeds = [GrownWeights(small, weights, large, torch.float64, CPU, seed) for seed in (0, 1)]
        self.padding, self.changed = padding, 0

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self.seeds[0].shape(name)

    def get(self, name: str) -> Tensor:
        tensor, other = (source.get(name) for source in self.seeds)
        random = tensor != other
        if name.endswith(("layernorm.weight", "model.norm.weight")):
            random[self.padding] = True
        self.changed += int(random.sum())
        noise = torch.randn(tensor.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(name)))
        return torch.where(random, 30 * noise, tensor)


@pytest.mark.parametrize(
    ("name", "padding"),
    [
        ("hidden × 4", slice(16, None)),
        ("hidden × 28, copied and padded", slice(7 * 16, None)),
        ("hidden × 2.5", slice(16, None)),
        ("all", slice(16, 16)),
        ("biases", slice(16, 16)),
        ("qwen3", slice(7 * 16, None)),
    ],
)
def test_nothing_leaks(name: str, padding: slice) -> None:
    more, shape = CASES[name]
    raw = {**SMALL, **more}
    small, weights = parse_config(raw), Weights(random_weights(raw, 7))
    loud = Loud(small, weights, grown_config(small, shape), padding)
    large = LlamaModel(grown_config(small, shape), loud, frozenset(), Precision.of(torch.float64), CPU)
    model = LlamaModel(small, weights, frozenset(), Precision.of(torch.float64), CPU)
    assert away(logits(model, text(40)), logits(large, text(40))) < 1e-12
    assert loud.changed > 1000


def test_work_is_real() -> None:
    """New layers and heads, and what reads new dimensions, hold numbers; only what writes to the stream is zero."""
    raw = {**SMALL}
    small, weights = parse_config(raw), Weights(random_weights(raw, 7))
    large = grown_config(small, GrownShape(5, 112, 40, 14, 7, 8, 50))
    grown = GrownWeights(small, weights, large, torch.float32, CPU)
    for i in range(5):
        for name in ("self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
            tensor = grown.get(f"model.layers.{i}.{name}.weight")
            assert tensor.count_nonzero() == tensor.numel()
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            assert (grown.get(f"model.layers.{i}.{name}.weight").count_nonzero() == 0) == (i >= 2)
        queries = grown.get(f"model.layers.{i}.self_attn.q_proj.weight")
        idle = 4 * 4 if i < 2 else 0  # the new half of the old heads
        assert queries.any(dim=1).sum() == 14 * 8 - idle
        assert queries.count_nonzero() == queries[queries.any(dim=1)].numel()
    assert grown.get("lm_head.weight")[:, :-1].all()


def test_determined_by_seed_and_name() -> None:
    raw = {**SMALL}
    small, weights = parse_config(raw), Weights(random_weights(raw, 7))
    large = grown_config(small, GQA)
    first, again, other = (GrownWeights(small, weights, large, torch.bfloat16, CPU, seed) for seed in (3, 3, 4))
    names = [name for name in large.shapes() if "q_proj" in name]
    drawn = {name: again.get(name) for name in reversed(names)}
    assert all(torch.equal(first.get(name), drawn[name]) for name in names)
    assert all(not torch.equal(first.get(name), other.get(name)) for name in names)
    assert not torch.equal(first.get(names[-1]), first.get(names[-2]))


@pytest.mark.parametrize("shapes", [EXACT, ODD], ids=["exact", "odd"])
@pytest.mark.parametrize("path", [TARGET, DRAFT], ids=["target", "draft"])
def test_embedded(path: Path, shapes: Mapping[Path, GrownShape]) -> None:
    tokens = text(8192, 60)
    for weights, engine in (("int8", "auto"), ("int8", "plain"), ("int4", "auto")):  # new tokens have infinite weights
        found = logits(load_grown(path, shapes[path], weights, "cpu", engine=engine), tokens)
        assert found[:, :8192].isfinite().all()
        assert (found[:, 8192:] < -1e30).all()
    for dtype, bound in (("float64", 1e-12), ("float32", 1e-5)):
        small = load_directory(path, dtype, CPU)
        assert away(logits(small, tokens), logits(load_grown(path, shapes[path], dtype, "cpu"), tokens)) < bound


@pytest.mark.parametrize("shapes", [EXACT, pytest.param(ODD, marks=pytest.mark.slow)], ids=["exact", "odd"])
def test_same_tokens(shapes: Mapping[Path, GrownShape]) -> None:
    """Greedy and sampled, with trees; both models are used and rejected as the small ones are."""
    target, draft = (load_grown(path, shapes[path], "float32", "cpu") for path in (TARGET, DRAFT))
    fixed = {"control": False}  # sizes that no clock chooses
    small = ouroboros.load(dtype="float32", device="cpu", pool=False, options=fixed)
    large = ouroboros.load(target=target, draft=draft, tokenizer=TARGET, pool=False, options=fixed)
    settings: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.8, "top_k": 9, "seed": 4}]
    assert target.info.grown == f"6 layers × 256 grown to {shapes[TARGET]}"
    assert small.target.info.grown is None
    for params in settings:
        expected, found = (
            decoder.generate(PROMPT, max_new_tokens=40, ignore_eos=True, **params) for decoder in (small, large)
        )
        assert found.token_ids == expected.token_ids
        assert found.stats.target_forwards == expected.stats.target_forwards < 40
        assert 0 < found.stats.accepted_tokens == expected.stats.accepted_tokens < found.stats.draft_tokens


@pytest.mark.parametrize("shapes", [EXACT, ODD], ids=["exact", "odd"])
def test_bfloat16_parts_at_near_ties_only(shapes: Mapping[Path, GrownShape]) -> None:
    """Where the first choices differ, the two are nearer to each other than what one rounding of the weights moves."""
    tokens = list(ouroboros.load(method="lookahead", target=TARGET, device="cpu").generate(PROMPT, seed=1).token_ids)
    for path in (TARGET, DRAFT):
        small, large = load_directory(path, "bfloat16", CPU), load_grown(path, shapes[path], "bfloat16", "cpu")
        slots = [model.open() for model in (small, large)]
        for token in tokens[:60]:
            theirs, ours = (
                model.score([ScoreRequest(slot, TokenTree(token))])[0][0].float()
                for model, slot in zip((small, large), slots, strict=True)
            )
            for slot in slots:
                slot.commit([0])
            margin = float(theirs.topk(2).values.diff().abs())
            bound = (0.05 if shapes is ODD else 0.02) * float(theirs.abs().max())
            assert away(theirs, ours) <= bound / float(theirs.abs().max())
            assert int(theirs.argmax()) == int(ours.argmax()) or margin <= bound


@pytest.mark.parametrize("name", ["all", "tied", "biases", "qwen2", "qwen3", "smollm3", "granite", "head size, llama3"])
def test_written_for_transformers(name: str, tmp_path: Path) -> None:
    more, shape = CASES[name]
    raw = {**SMALL, **more}
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    (small / "config.json").write_text(json.dumps(raw))
    weights = {key: tensor.float() for key, tensor in random_weights(raw, 7).items()}
    save_file(weights, small / "model.safetensors")
    if shape.head_dim == 8 and name not in ("qwen3", "granite"):
        with pytest.raises(InputError, match=r"^head_dim 8 for the checkpoint's 4 needs an attention scale [^\n]*$"):
            write_grown(small, shape, large)
        shape = replace(shape, head_dim=16)
    write_grown(small, shape, large, shard_bytes=4_000)
    assert len(list(large.glob("*.safetensors"))) > 2
    theirs = AutoModelForCausalLM.from_pretrained(large, dtype=torch.float32).eval()
    model, tokens = load_directory(small, "float32", CPU), text(40)
    slot = model.open()
    model.prefill(slot, tokens[:20])
    tree = TokenTree(tokens[20])
    tree.extend(0, tokens[21:], Origin.DRAFT)
    with torch.no_grad():
        ours = theirs(torch.tensor([tokens])).logits[0, 20:]
    assert away(model.score([ScoreRequest(slot, tree)])[0], ours) < 1e-5
    again = load_directory(large, "float32", CPU)
    assert again.info.grown is not None
    assert again.info.grown.startswith("2 layers × 16 grown to ")
    assert away(logits(model, tokens), logits(again, tokens)) < 1e-5


def test_written_embedded_pair(tmp_path: Path) -> None:
    """An ordinary directory: tokenizer, dtype, plain llama; load and transformers write the small target's tokens."""
    write_grown(TARGET, EXACT[TARGET], tmp_path, dtype="float32")
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["model_type"] == "llama"
    assert raw["torch_dtype"] == "float32"
    assert not (tmp_path / "model.safetensors.index.json").exists()
    large = ouroboros.load(target=tmp_path, draft=DRAFT, device="cpu")
    assert large.target.info.grown is not None
    expected = ouroboros.load(device="cpu").generate(PROMPT, max_new_tokens=32, ignore_eos=True)
    assert large.generate(PROMPT, max_new_tokens=32, ignore_eos=True).token_ids == expected.token_ids
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    theirs.generation_config.eos_token_id = None
    prompt = torch.tensor([expected.prompt_token_ids])
    written = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=32)
    assert tuple(written[0, prompt.shape[1] :].tolist()) == expected.token_ids
    with pytest.raises(InputError, match=r"^hidden_size 256 must be a multiple of num_attention_heads 5 [^\n]*$"):
        write_grown(TARGET, GrownShape(6, 256, 704, 5, 5, 64), tmp_path)
    with pytest.raises(InputError, match=r"^'[^\n]*' is not empty; [^\n]*$"):
        write_grown(TARGET, EXACT[TARGET], tmp_path)


@pytest.mark.parametrize(
    ("name", "path", "millions", "heads"),
    [
        ("0.35b", TARGET, 350.8, (16, 16, 64)),
        ("62m", DRAFT, 61.9, (20, 20, 32)),
        ("yi-34b", TARGET, 34388.9, (56, 8, 128)),
        ("yi-6b", DRAFT, 6061.0, (64, 8, 64)),  # 4 key heads of 128 cannot hold 5
        ("llama2-70b", TARGET, 68976.6, (64, 8, 128)),
        ("llama2-7b", DRAFT, 6738.4, (32, 32, 128)),
        ("codellama-34b", TARGET, 33744.0, (64, 8, 128)),
        ("codellama-7b", DRAFT, 6738.4, (32, 32, 128)),
        ("deepseek-33b", TARGET, 33343.0, (56, 8, 128)),
        ("deepseek-6.7b", DRAFT, 6740.5, (32, 32, 128)),
    ],
)
def test_presets(
    name: str, path: Path, millions: float, heads: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published parameter counts; and nothing is made where it would not fit."""
    small = parse_config(json.loads((path / "config.json").read_text()))
    shape = next(s for s in PRESETS[name].splits() if s.num_key_value_heads >= small.num_key_value_heads)
    config = grown_config(small, shape)
    assert config.parameters() / 1e6 == pytest.approx(millions, abs=0.1)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == heads
    monkeypatch.setattr("ouroboros.models.loading.available_memory", lambda device: 10_000_000)
    need = f"{config.parameters() * 2 / 1e9:.2f} GB"
    with pytest.raises(LoadError, match=rf"^cannot grow '[^\n]*': the weights in bfloat16 need {need} [^\n]*$"):
        load_grown(path, name, "bfloat16", "cpu")


SAME = GrownShape(2, 16, 24, 4, 2, 4)
PHI3 = {"model_type": "phi3"}
SIX = {"num_attention_heads": 6, "head_dim": 4}
YARN = {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256}, "head_dim": 16}


@pytest.mark.parametrize(
    ("more", "shape", "words"),
    [
        ({}, GrownShape(1, 16, 24, 4, 2, 4), "num_hidden_layers must be a whole number from the checkpoint's 2 on"),
        ({}, GrownShape(2, 16, 20, 4, 2, 4), "intermediate_size must"),
        ({}, GrownShape(2, 16, 24, 5, 2, 4), r"num_attention_heads \(5\) must be a multiple"),
        (SIX, GrownShape(2, 16, 24, 6, 3, 4), "num_key_value_heads must be 4 at least for groups of 2, not 3"),
        ({}, GrownShape(2, 16, 24, 4, 2, 6), "head_dim 6 for the checkpoint's 4 is not possible"),
        (YARN, GrownShape(2, 16, 24, 4, 2, 64), "head_dim 64 .* yarn"),
        ({"model_type": "qwen3", "head_dim": 4}, GrownShape(2, 16, 24, 4, 2, 8), "norms over heads"),
        ({}, GrownShape(2, 16, 24, 4, 2, 4, 50), "vocab_size 50 needs a hidden_size above 16"),
        ({"rms_norm_eps": 0}, GrownShape(2, 20, 24, 4, 2, 4, 50), "and an rms_norm_eps above 0"),
        ({}, GrownShape(2, 16, 24, 4, 2, 4, 30), "vocab_size must"),
        ({}, GrownShape(2, 16, 24, 4, 2, 4, tie_word_embeddings=True), "tie_word_embeddings must be False"),
        (PHI3, SAME, r"checkpoints with fused tensors \(phi3\) cannot be grown"),
    ],
)
def test_refusals(more: Mapping[str, Any], shape: GrownShape, words: str) -> None:
    with pytest.raises(OuroborosError, match=rf"^[^\n]*{words}[^\n]*$"):
        grown_config(parse_config({**SMALL, **more}), shape)


def test_unknown_names() -> None:
    with pytest.raises(InputError, match=r"^shape must be one of 0.35b, [^\n]*, not 'yi-9b'$"):
        load_grown(TARGET, "yi-9b")
    with pytest.raises(InputError, match=r"^the checkpoint cannot be grown to '62m': head_dim must [^\n]*$"):
        load_grown(TARGET, "62m")
    with pytest.raises(LoadError, match=r"^no such directory: [^\n]*$"):
        load_grown("/nowhere/at all", "62m")
