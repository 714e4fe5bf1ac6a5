"""The adapter against transformers' own forwards without a cache, for many architectures; and which it refuses.

What a model says of a node is the last row of a plain
forward over the committed tokens and the path to the node: no cache and no mask of ours.
"""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import ouroboros
from ouroboros.config import LookaheadOptions, MethodOptions, OuroborosOptions, PromptLookupOptions, SamplingParams
from ouroboros.config import SpeculativeOptions as Speculative
from ouroboros.errors import InputError, LoadError
from ouroboros.models.base import CausalModel, ScoreRequest, Slot
from ouroboros.models.loading import load_module
from ouroboros.models.transformers import load_pretrained, wrap_module
from ouroboros.models.transformers_model import TransformersModel
from ouroboros.models.transformers_probe import adapt
from ouroboros.tree import Origin, TokenTree
from tests.reference import draw
from tests.zoo import ADAPTED, GPT, MANY_HEADS, MODERN, TREES, VOCAB, WINDOW, build, perturbed

CPU = torch.device("cpu")


@cache
def module(name: str) -> Any:
    return build(name)


@cache
def similar(name: str) -> Any:
    return perturbed(module(name))


@cache
def adapter(name: str, draft: bool = False) -> TransformersModel:
    return wrap_module(similar(name) if draft else module(name), "auto", "auto")


@cache
@torch.inference_mode()
def plain(name: str, tokens: tuple[int, ...]) -> Tensor:
    """[vocabulary]: the logits behind the last token, by the model's own forward without a cache."""
    logits: Tensor = module(name)(torch.tensor([tokens]), use_cache=False).logits[0, -1]
    return logits


def check_rows(name: str, found: Tensor, texts: Sequence[Sequence[int]]) -> None:
    assert found.shape == (len(texts), VOCAB)
    for row, text in zip(found, texts, strict=True):
        expected = plain(name, tuple(text))
        assert (row - expected).abs().max() <= 1e-4 * expected.abs().max()


# ----------------------------------------------------------------------------------------------- what it says of itself


@pytest.mark.parametrize("name", ADAPTED)
def test_trees_or_chains(name: str) -> None:
    info = adapter(name).info
    assert info.trees == (name in TREES)
    assert (info.backend, info.vocab_size, info.dtype, info.device) == ("transformers", VOCAB, "float32", "cpu")
    assert info.max_positions == (2**31 - 1 if name == "bloom" else 256)
    assert info.parameters == sum(p.numel() for p in module(name).parameters())
    assert info.eos_token_ids == frozenset()


def test_the_config_is_as_it_was() -> None:
    adapter("gemma3"), adapter("llama4")
    assert module("gemma3").config.sliding_window == WINDOW
    assert module("llama4").config.attention_chunk_size == WINDOW


def test_end_of_sequence() -> None:
    model = copy.deepcopy(module("gpt2"))
    model.config.eos_token_id = 3
    model.generation_config.eos_token_id = [4, 5]
    assert wrap_module(model, "auto", "auto").info.eos_token_ids == {3, 4, 5}


def test_context_where_angles_depend_on_the_length() -> None:
    """Past the original context the angles of all earlier keys change; before it they are fixed."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = hf.Phi3Config(
        **{**MODERN, "original_max_position_embeddings": 64},
        rope_parameters={**rope, "original_max_position_embeddings": 64},
    )
    assert wrap_module(hf.AutoModelForCausalLM.from_config(config), "auto", "auto").info.max_positions == 64


def test_kernels_that_take_no_mask_run_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(module("llama"))
    for kind in ("sdpa", "eager"):
        model.config._attn_implementation = kind
        assert wrap_module(model, "auto", "auto").info.trees
    monkeypatch.setattr("ouroboros.models.transformers_probe.MASKED", {"sdpa"})
    assert not wrap_module(model, "auto", "auto").info.trees


class Unmasked(TransformersModel):
    """Lets every node see every other one before it."""

    def _masks(self, tree: TokenTree, pending: int, catch_up: int, positions: Sequence[int]) -> Any:
        return super()._masks(_as_chain(tree), pending, catch_up, positions)


def _as_chain(tree: TokenTree) -> TokenTree:
    chain = TokenTree(0)
    chain.extend(0, range(1, len(tree)), Origin.DRAFT)
    return chain


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "gemma", "gemma3", "mixtral", "falcon with alibi"])
def test_the_test_at_load_notices(name: str, dtype: torch.dtype) -> None:
    """Also in short types, and with the small weights of an untrained model, that hardly attend to anything."""
    kind, settings = ADAPTED[name]
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(kind(**{**settings, "initializer_range": 0.02})).to(dtype)
    assert adapt(model).info.trees == (name in TREES)
    assert not adapt(model, Unmasked).info.trees


# ------------------------------------------------------------------------------------------------------- the contract


def native_llama() -> CausalModel:
    return load_module(module("llama"), "auto", "auto")


CONTRACT: Mapping[str, tuple[str, Callable[[], CausalModel]]] = {
    "native": ("llama", cache(native_llama)),
    **{name: (name, partial(adapter, name)) for name in ("llama", "gpt2", "gemma3", "llama4", "bloom", "gpt_neo")},
}


class Life:
    """A slot with its slow twin: what is committed and what is pending, in plain lists."""

    def __init__(self, model: CausalModel, name: str, source: random.Random) -> None:
        self.model, self.name, self.source = model, name, source
        self.slot: Slot = model.open()
        self.committed: list[int] = []
        self.tree = self.new_tree()
        self.seen: Counter[str] = Counter()

    def new_tree(self) -> TokenTree:
        return TokenTree(self.source.randrange(VOCAB))

    def step(self) -> None:
        """One random call, and what it must do."""
        kind = self.source.choice(["prefill", "score", "score", "score", "commit", "commit", "truncate", "rewind"])
        if len(self.committed) > 40:
            kind = "rewind"
        getattr(self, kind)()
        self.seen[kind] += 1
        assert (self.slot.length, self.slot.pending) == (len(self.committed), self.pending)

    pending = 0

    def prefill(self) -> None:
        if self.pending == 0:
            tokens = self.source.choices(range(VOCAB), k=self.source.randint(0, 9))
            self.model.prefill(self.slot, tokens)
            self.committed += tokens

    def request(self) -> tuple[ScoreRequest, list[list[int]]]:
        """A request, and the texts behind whose last tokens it asks for logits. The twin counts it as done."""
        late: list[int] = []
        if self.pending == 0 and self.source.random() < 0.4:
            late = self.source.choices(range(VOCAB), k=self.source.randint(1, 5))
            self.seen["catch up"] += 1
        for _ in range(self.source.randint(1, 7)):
            chain = not self.model.info.trees or self.source.random() < 0.3
            below = len(self.tree) - 1 if chain else self.source.randrange(len(self.tree))
            self.tree.add(below, self.source.randrange(VOCAB), Origin.DRAFT)
        if len(self.tree) == self.pending:
            self.tree.extend(self.pending - 1, [self.source.randrange(VOCAB)], Origin.DRAFT)
        nodes = range(self.pending, len(self.tree))
        rows = None if self.source.random() < 0.5 else self.source.sample(nodes, k=self.source.randint(1, len(nodes)))
        self.committed += late
        self.pending = len(self.tree)
        branched = any(parent != node - 1 for node, parent in enumerate(self.tree.parents))
        self.seen["tree" if branched else "chain"] += 1
        wanted = [self.path(node) for node in (nodes if rows is None else rows)]
        return ScoreRequest(self.slot, self.tree, rows, late), wanted

    def path(self, node: int) -> list[int]:
        return [*self.committed, self.tree.tokens[0], *self.tree.path_tokens(node)]

    def score(self) -> None:
        request, wanted = self.request()
        check_rows(self.name, self.model.score([request])[0], wanted)

    def commit(self) -> None:
        path = self.tree.path(self.source.randrange(self.pending)) if self.pending else []
        self.slot.commit(path)
        self.committed += [self.tree.tokens[node] for node in path]
        self.tree, self.pending = self.new_tree(), 0

    def truncate(self) -> None:
        self.pending = self.source.randint(0, self.pending)
        self.slot.truncate(self.pending)
        self.tree = self.tree.select(range(self.pending)) if self.pending else self.new_tree()

    def rewind(self) -> None:
        self.committed = self.committed[: self.source.randint(0, len(self.committed))]
        self.slot.rewind(len(self.committed))
        self.tree, self.pending = self.new_tree(), 0


@pytest.mark.parametrize("kind", CONTRACT)
def test_any_life(kind: str) -> None:
    name, make = CONTRACT[kind]
    seen: Counter[str] = Counter()
    for seed in range(5):
        life = Life(make(), name, random.Random(seed))
        for _ in range(30):
            life.step()
        seen += life.seen
    for what in ("prefill", "commit", "truncate", "rewind", "catch up", "chain", "tree"):
        assert seen[what] or (what == "tree" and not make().info.trees), what


@pytest.mark.parametrize("kind", CONTRACT)
def test_several_slots(kind: str) -> None:
    name, make = CONTRACT[kind]
    lives = [Life(make(), name, random.Random(seed)) for seed in range(3)]
    for _ in range(3):
        requests, wanted = zip(*(life.request() for life in lives), strict=True)
        for found, texts in zip(make().score(requests), wanted, strict=True):
            check_rows(name, found, texts)
        for life in lives:
            life.commit()


@pytest.mark.parametrize("name", ADAPTED)
def test_long_chain_and_tree(name: str) -> None:
    """Far past every window, in a cache whose buffers have grown, by two chunks of a prefill."""
    source = random.Random(name)
    life = Life(adapter(name), name, source)
    life.committed = source.choices(range(VOCAB), k=230)
    life.model.prefill(life.slot, life.committed[:1])
    life.model.prefill(life.slot, life.committed[1:])
    for _ in range(3):
        life.score()
    life.commit()
    life.score()


def test_buffers_grow_and_prefill_goes_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ouroboros.models.transformers_cache.STEP", 3)
    monkeypatch.setattr("ouroboros.models.transformers_model.PREFILL_CHUNK", 5)
    life = Life(adapter("gemma3"), "gemma3", random.Random(5))
    life.committed = [1, 2, 3, 4] * 8
    life.model.prefill(life.slot, life.committed)
    for _ in range(4):
        life.score()


def test_unknown_ids_are_read_as_the_last_row() -> None:
    model = adapter("gpt2")
    slot = model.open()
    model.prefill(slot, [3, VOCAB + 7])
    check_rows("gpt2", model.score([ScoreRequest(slot, TokenTree(5))])[0], [[3, VOCAB - 1, 5]])


def test_a_chain_only_model_takes_no_tree() -> None:
    model = adapter("bloom")
    tree = TokenTree(1)
    tree.add(0, 2, Origin.DRAFT), tree.add(0, 3, Origin.DRAFT)
    with pytest.raises(AssertionError, match="chains only"):
        model.score([ScoreRequest(model.open(), tree)])


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_positions_end_where_the_table_ends(name: str) -> None:
    decoder = ouroboros.load(module(name), similar(name))
    result = decoder.generate([1, 2] * 120, max_new_tokens=100)
    assert (len(result.token_ids), result.finish_reason) == (16, "length")
    with pytest.raises(InputError, match="255"):
        decoder.generate([1] * 256)


# --------------------------------------------------------------------------------------------------------- the oracle

WARPS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 1.0},
    "penalised": {"temperature": 0.7, "repetition_penalty": 1.3},
}
METHODS: Mapping[str, MethodOptions] = {
    "speculative": Speculative(draft_tokens=4),
    "lookahead": LookaheadOptions(window=4, ngram=3, branches=3),
    "ouroboros": OuroborosOptions(draft_tokens=4, window=4, ngram=3),
    "prompt_lookup": PromptLookupOptions(),
}
PROMPT = [7, 8, 9, 10, 7, 8, 9, 11, 7, 8]
NEW = 14


@cache
def expected(name: str, warp: str) -> tuple[int, ...]:
    params = SamplingParams(max_new_tokens=NEW, **WARPS[warp])
    tokens = list(PROMPT)
    for _ in range(NEW):
        tokens.append(draw(plain(name, tuple(tokens)).tolist(), params, 5, tokens))
    return tuple(tokens[len(PROMPT) :])


@pytest.mark.parametrize("name", ADAPTED)
def test_decoding(name: str) -> None:
    """Token for token what a naive generator writes, by every method."""
    totals: Counter[str] = Counter()
    for method, options in METHODS.items():
        draft = adapter(name, draft=True) if method in ("speculative", "ouroboros") else None
        decoder = ouroboros.load(adapter(name), draft, method=method, options=options)
        for warp, settings in WARPS.items():
            result = decoder.generate(PROMPT, max_new_tokens=NEW, seed=5, ignore_eos=True, **settings)
            assert result.token_ids == expected(name, warp), (method, warp)
            totals["accepted"] += result.stats.accepted_tokens
            totals["rejected"] += result.stats.draft_tokens - result.stats.accepted_tokens
    assert totals["accepted"]
    assert totals["rejected"]


@pytest.mark.parametrize(("target", "draft"), [("gpt2", "phi"), ("bloom", "gpt2"), ("gpt2", "bloom"), ("mpt", "bloom")])
def test_stats_say_what_takes_trees(target: str, draft: str) -> None:
    decoder = ouroboros.load(adapter(target), adapter(draft))
    stats = decoder.generate(PROMPT, max_new_tokens=3).stats
    assert (stats.trees, stats.draft_trees) == (target in TREES, draft in TREES)
    assert (stats.to_dict()["trees"], stats.to_dict()["draft_trees"]) == (stats.trees, stats.draft_trees)
    alone = ouroboros.load(adapter(target), method="lookahead").generate(PROMPT, max_new_tokens=3).stats
    assert (alone.trees, alone.draft_trees) == (target in TREES, True)


@pytest.mark.parametrize("name", ["gpt2", "bloom"])
@pytest.mark.parametrize("method", ["speculative", "ouroboros"])
def test_native_and_foreign_models_go_together(name: str, method: str) -> None:
    native = native_llama()
    for target, draft in ((name, native), (native, adapter(name))):
        decoder = ouroboros.load(adapter(target) if isinstance(target, str) else target, draft, method=method)
        text = expected("llama" if target is native else name, "temperature")
        assert decoder.generate(PROMPT, max_new_tokens=NEW, seed=5, temperature=1.0).token_ids == text


# ------------------------------------------------------------------------------------------------------- the refused

STATE: Mapping[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
REFUSED: Mapping[str, tuple[Any, Mapping[str, Any], str]] = {
    "mamba": (hf.MambaConfig, STATE, "linear_attention"),
    "mamba2": (hf.Mamba2Config, {**STATE, "num_heads": 4, "head_dim": 16, "n_groups": 1}, "linear_attention"),
    "jamba": (
        hf.JambaConfig,
        {**MODERN, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        "linear_attention",
    ),
    "bamba": (
        hf.BambaConfig,
        {**MODERN, "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 4},
        "linear_attention",
    ),
    "recurrent_gemma": (
        hf.RecurrentGemmaConfig,
        {**MODERN, "lru_width": 32, "attention_window_size": 8},
        "linear_attention",
    ),
    "lfm2": (hf.Lfm2Config, {**MODERN, "full_attn_idxs": [1]}, "'conv'"),
    "bert": (hf.BertConfig, MANY_HEADS, "not causal"),
    "xlnet": (hf.XLNetConfig, {"vocab_size": VOCAB, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, "causal"),
    "openai-gpt": (hf.OpenAIGPTConfig, GPT, "no key-value cache"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    kind, settings, reason = REFUSED[name]
    with pytest.raises(LoadError) as caught:
        wrap_module(hf.AutoModelForCausalLM.from_config(kind(**settings)), "auto", "auto")
    assert repr(name) in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refused_by_class() -> None:
    small: dict[str, Any] = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    recurrent = hf.RwkvConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32)
    with pytest.raises(LoadError, match=r"'rwkv' keeps a recurrent state, which cannot be rolled back"):
        wrap_module(hf.RwkvForCausalLM(recurrent), "auto", "auto")
    with pytest.raises(LoadError, match=r"'t5' is an encoder and a decoder"):
        wrap_module(hf.T5ForConditionalGeneration(hf.T5Config(**small)), "auto", "auto")
    with pytest.raises(LoadError, match=r"GPT2Model has no output matrix"):
        wrap_module(hf.GPT2Model(hf.GPT2Config(**GPT)), "auto", "auto")
    with pytest.raises(LoadError, match=r"transformers model, not Linear"):
        wrap_module(torch.nn.Linear(2, 2), "auto", "auto")
    with pytest.raises(LoadError, match=r"context of 12 tokens is too short"):
        wrap_module(hf.GPT2LMHeadModel(hf.GPT2Config(**{**GPT, "n_positions": 12})), "auto", "auto")


def test_a_loaded_model_stays_as_it_is() -> None:
    with pytest.raises(InputError, match="float32"):
        wrap_module(module("gpt2"), "bfloat16", "auto")
    with pytest.raises(InputError, match="'cuda'"):
        wrap_module(module("gpt2"), "auto", "cuda")
    assert wrap_module(module("gpt2"), torch.float32, "cpu").info.dtype == "float32"


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(("name", "dtype"), [("gpt2", "auto"), ("gemma3", "float64"), ("phi", "bfloat16")])
def test_directories(tmp_path: Path, name: str, dtype: str) -> None:
    module(name).save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, dtype, CPU)
    assert model.info.dtype == ("float32" if dtype == "auto" else dtype)
    assert model.info.trees
    if dtype == "auto":
        assert load_pretrained(tmp_path, torch.float32, CPU).info == model.info == adapter(name).info


def test_missing_tensors_are_not_made_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    module("phi").save_pretrained(tmp_path)
    capfd.readouterr()
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.self_attn.k_proj.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, file, {"format": "pt"})
    with pytest.raises(LoadError, match=name):
        load_pretrained(tmp_path, "auto", CPU)
    save_file({**tensors, name: tensors[name][:, :3].contiguous()}, file, {"format": "pt"})
    with pytest.raises(LoadError, match=name):
        load_pretrained(tmp_path, "auto", CPU)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "bloom"])
def test_what_does_not_fit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    copy.deepcopy(module(name)).to(torch.bfloat16).save_pretrained(tmp_path)
    free = {"cpu": 0, "cuda": 10**12}
    monkeypatch.setattr("ouroboros.models.transformers.available_memory", lambda device: free[device.type])
    parameters = adapter(name).info.parameters

    def refused(dtype: str, device: str, words: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(hf.AutoModelForCausalLM, "from_pretrained", None)
            with pytest.raises(LoadError) as caught:
                load_pretrained(tmp_path, dtype, torch.device(device))
        assert f"cannot load {str(tmp_path)!r}: the weights in {words} need 0.00 GB" in str(caught.value)

    for dtype, kind, size in (("auto", "float32", 4), ("bfloat16", "bfloat16", 2), ("float64", "float64", 8)):
        free["cpu"] = parameters * size - 1
        refused(dtype, "cpu", kind)
        free["cpu"] += 1
        assert load_pretrained(tmp_path, dtype, CPU).info.dtype == kind
    free["cpu"] = parameters * 2 - 1
    refused("auto", "cuda", "bfloat16")  # the files' type: on their way to the device they are here
    free.update(cpu=10**12, cuda=parameters * 4 - 1)
    refused("float32", "cuda", "float32")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": None}))
    free["cuda"] = parameters * 2 - 1
    refused("auto", "cuda", "bfloat16")  # as the files say, where the config does not


def test_devices_of_a_map_are_left_to_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module("gpt2").save_pretrained(tmp_path)
    monkeypatch.setattr("ouroboros.models.transformers.available_memory", lambda device: 0)
    original = hf.AutoModelForCausalLM.from_pretrained
    maps = []

    def watch(*args: Any, **settings: Any) -> Any:
        maps.append(settings.pop("device_map"))  # accelerate, which it takes, is not installed here
        return original(*args, **settings)

    monkeypatch.setattr(hf.AutoModelForCausalLM, "from_pretrained", watch)
    load_pretrained(tmp_path, "auto", CPU, "auto")
    assert maps == ["auto"]


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}'
    )
    (tmp_path / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(LoadError) as caught:
        load_pretrained(tmp_path, "auto", CPU)
    assert repr(str(tmp_path)) in str(caught.value)
    assert "code of its own" in str(caught.value)
    assert "\n" not in str(caught.value)
