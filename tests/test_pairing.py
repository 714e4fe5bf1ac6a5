"""``load``: which models, tokenizers, pools and options go together; the others are refused before decoding begins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import ouroboros
from ouroboros.config import METHODS, MethodOptions, OuroborosOptions, SpeculativeOptions, options_for
from ouroboros.errors import InputError, LoadError, OuroborosError, PoolFileError, UnsupportedArchitecture
from ouroboros.models import loading
from ouroboros.phrases.pool import PhrasePool
from ouroboros.text import Tokenizer

VOCAB = 61
EMBEDDED = Path(ouroboros.__file__).parent / "embedded"
WITH_DRAFT = ["speculative", "ouroboros"]
WITHOUT_DRAFT = ["autoregressive", "lookahead", "prompt_lookup"]


def llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "eos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | changes))


def words(last: str = "w60", eos: str | None = None) -> PreTrainedTokenizerFast:
    """A vocabulary of w0 ... w59 and ``last``."""
    vocabulary = {f"w{i}": i for i in range(VOCAB - 1)} | {last: VOCAB - 1}
    raw = RawTokenizer(WordLevel(vocabulary, unk_token="w0"))
    raw.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=eos)


def write(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    model.save_pretrained(path)
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Directories by name: two with the same tokenizer, one with another, two without any."""
    root = tmp_path_factory.mktemp("models")
    return {
        "target": write(root / "target", llama(1), words()),
        "draft": write(root / "draft", llama(2), words()),
        "padded draft": write(root / "padded draft", llama(2, vocab_size=VOCAB + 3), words()),
        "short draft": write(root / "short draft", llama(2, vocab_size=VOCAB - 3), words()),
        "foreign draft": write(root / "foreign draft", llama(2), words(last="another")),
        "bare target": write(root / "bare target", llama(1)),
        "bare draft": write(root / "bare draft", llama(2)),
        "bare wide draft": write(root / "bare wide draft", llama(2, vocab_size=VOCAB + 1)),
    }


@pytest.fixture
def pair(models: Mapping[str, Path]) -> Mapping[str, Any]:
    return {"target": models["target"], "draft": models["draft"]}


@contextmanager
def refused(kind: type[OuroborosError], *parts: str) -> Iterator[None]:
    """The block must raise exactly this error, in one line, with all these words."""
    with pytest.raises(OuroborosError) as caught:
        yield
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    for part in parts:
        assert part in message


def continued(decoder: ouroboros.Decoder, prompt: Any = (5, 6, 7), **settings: Any) -> tuple[int, ...]:
    result = decoder.generate(prompt if isinstance(prompt, str) else list(prompt), max_new_tokens=12, **settings)
    assert isinstance(result.token_ids, tuple)
    return result.token_ids


# ------------------------------------------------------------------------------------------------------- the pair


@pytest.mark.parametrize("method", METHODS)
def test_embedded_pair(method: str) -> None:
    decoder = ouroboros.load(method=method)
    assert (decoder.method, decoder.target.info.vocab_size) == (method, 8192)
    assert (decoder.draft is not None) == (method in WITH_DRAFT)
    assert type(decoder.options) is METHODS[method]
    assert decoder.tokenizer is not None
    assert decoder.target.info.eos_token_ids == {0}


def test_the_default_method_is_ouroboros() -> None:
    assert ouroboros.load().method == "ouroboros"


@pytest.mark.parametrize("method", WITHOUT_DRAFT)
def test_a_draft_for_a_method_that_uses_none(method: str, models: Mapping[str, Path]) -> None:
    with refused(InputError, repr(method), "no draft", repr(str(models["draft"]))):
        ouroboros.load(models["target"], models["draft"], method=method)
    with refused(InputError, repr(method), "no draft", "LlamaForCausalLM"):
        ouroboros.load(models["target"], llama(), method=method)


@pytest.mark.parametrize("method", WITH_DRAFT)
def test_a_draft_without_a_target(method: str, models: Mapping[str, Path]) -> None:
    with refused(InputError, "draft", "target", "embedded"):
        ouroboros.load(draft=models["draft"], method=method)


def test_a_target_without_the_draft_it_needs(models: Mapping[str, Path]) -> None:
    with refused(InputError, "'speculative' needs a draft model", "lookahead", "prompt_lookup"):
        ouroboros.load(models["target"], method="speculative")


@pytest.mark.parametrize("method", ["Ouroboros", "", None, 3])
def test_unknown_method(method: Any) -> None:
    with refused(InputError, "method", repr(method), ", ".join(METHODS)):
        ouroboros.load(method=method)


def test_draft_with_another_tokenizer(models: Mapping[str, Path]) -> None:
    with refused(LoadError, repr(str(models["foreign draft"])), "tokenizer"):
        ouroboros.load(models["target"], models["foreign draft"])
    with refused(LoadError, repr(str(EMBEDDED / "draft")), "tokenizer"):
        ouroboros.load(models["target"], EMBEDDED / "draft")


def test_the_given_tokenizer_is_what_the_draft_must_share(models: Mapping[str, Path]) -> None:
    given = words(last="another")
    with refused(LoadError, "tokenizer"):
        ouroboros.load(models["target"], models["draft"], given)
    decoder = ouroboros.load(models["target"], models["foreign draft"], given)
    assert decoder.tokenizer is not None
    assert decoder.tokenizer.encode("another w3") == [60, 3]


def test_without_both_tokenizers_the_vocabularies_must_be_of_one_size(models: Mapping[str, Path]) -> None:
    ouroboros.load(models["bare target"], models["bare draft"])
    ouroboros.load(models["target"], models["bare draft"])
    for target in ("bare target", "target"):
        with refused(LoadError, repr(str(models["bare wide draft"])), "62", "61"):
            ouroboros.load(models[target], models["bare wide draft"])


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"repetition_penalty": 1.3, "temperature": 1.5, "top_p": 0.9},
]


def check_lossless(target: Path, draft: Path, method: str, settings: Mapping[str, Any]) -> None:
    plain = ouroboros.load(target, method="autoregressive", dtype="float64")
    decoder = ouroboros.load(target, draft, method=method, dtype="float64")
    for prompt in ((5, 6, 7), (60, 59), (58, 60, 58, 60, 59, 58)):
        assert continued(decoder, prompt, seed=3, **settings) == continued(plain, prompt, seed=3, **settings)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("method", WITH_DRAFT)
@pytest.mark.parametrize("draft", ["draft", "padded draft", "bare draft"])
def test_pairs_are_lossless(models: Mapping[str, Path], draft: str, method: str, settings: Mapping[str, Any]) -> None:
    """Also with a draft whose matrix is padded with rows that the target's does not have."""
    check_lossless(models["target"], models[draft], method, settings)


@pytest.mark.parametrize("method", WITH_DRAFT)
def test_a_draft_with_fewer_rows(models: Mapping[str, Path], method: str) -> None:
    """The target's matrix is padded further than the draft's, and the text holds one of the target's own ids."""
    for settings in SETTINGS:
        check_lossless(models["target"], models["short draft"], method, settings)


# ------------------------------------------------------------------------------------------------- the other backend

SMALL: dict[str, Any] = {"vocab_size": VOCAB, "n_layer": 1, "n_head": 2, "initializer_range": 0.3, "eos_token_id": None}


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(**SMALL, n_embd=16, n_positions=128))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Directories with what the native decoder does not compute."""
    root = tmp_path_factory.mktemp("others")
    bloom = BloomForCausalLM(BloomConfig(**SMALL, hidden_size=16, bos_token_id=None, pad_token_id=None))
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "num_layers": 1, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2}
    return {
        "gpt2": write(root / "gpt2", gpt2(1), words()),
        "gpt2 draft": write(root / "gpt2 draft", gpt2(2), words()),
        "bloom": write(root / "bloom", bloom, words()),
        "mamba": write(root / "mamba", MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=16, state_size=4))),
        "t5": write(root / "t5", T5ForConditionalGeneration(T5Config(**sizes))),
    }


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("method", WITH_DRAFT)
@pytest.mark.parametrize("target", ["gpt2", "bloom"])
def test_other_architectures_go_to_transformers(
    models: Mapping[str, Path], others: Mapping[str, Path], target: str, method: str, settings: Mapping[str, Any]
) -> None:
    plain = ouroboros.load(others[target], method="autoregressive")
    assert (plain.target.info.backend, plain.target.info.trees) == ("transformers", target == "gpt2")
    for draft, backend in ((models["draft"], "native"), (others["gpt2 draft"], "transformers")):
        decoder = ouroboros.load(others[target], draft, method=method)
        assert decoder.draft is not None
        assert decoder.draft.info.backend == backend
        assert continued(decoder, seed=3, **settings) == continued(plain, seed=3, **settings)
        result = decoder.generate("w5 w6", max_new_tokens=2)
        assert result.stats.backend == "transformers"
        assert result.text is not None


def test_the_backend_can_be_chosen(models: Mapping[str, Path], others: Mapping[str, Path]) -> None:
    native = ouroboros.load(models["target"], models["draft"], backend="native")
    foreign = ouroboros.load(models["target"], models["draft"], backend="transformers")
    assert native.draft is not None
    assert foreign.draft is not None
    assert {model.info.backend for model in (native.target, native.draft)} == {"native"}
    assert {model.info.backend for model in (foreign.target, foreign.draft)} == {"transformers"}
    assert native.target.info.parameters == foreign.target.info.parameters
    assert continued(native) == continued(foreign) == continued(ouroboros.load(llama(1), llama(2)))
    with refused(UnsupportedArchitecture, repr(str(others["gpt2"])), "'gpt2'"):
        ouroboros.load(others["gpt2"], method="autoregressive", backend="native")
    with refused(UnsupportedArchitecture, "GPT2LMHeadModel", "'gpt2'"):
        ouroboros.load(gpt2(), method="autoregressive", backend="native")
    with refused(InputError, "backend", "'vllm'", "auto, native, transformers"):
        ouroboros.load(models["target"], method="autoregressive", backend="vllm")


def test_the_engine_can_be_chosen(
    models: Mapping[str, Path], others: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both models, from files and from memory; what it cannot be is one line."""
    expected = continued(ouroboros.load(models["target"], models["draft"]))
    for name in ("plain", "static"):
        for pair in ((models["target"], models["draft"]), (llama(1), llama(2))):
            decoder = ouroboros.load(*pair, engine=name)
            assert decoder.draft is not None
            assert {model.info.engine.split(" (")[0] for model in (decoder.target, decoder.draft)} == {name}
            assert continued(decoder) == expected
    with refused(InputError, "engine must be one of auto, kernels, packed, plain, static, not 'fast'"):
        ouroboros.load("nowhere", method="autoregressive", engine="fast")
    with refused(InputError, "engine 'plain'", "native decoder's"):
        ouroboros.load(models["target"], method="autoregressive", engine="plain", backend="transformers")
    with refused(UnsupportedArchitecture, "'gpt2'"):
        ouroboros.load(others["gpt2"], method="autoregressive", engine="plain")
    monkeypatch.setattr("ouroboros.models.kernels.library", lambda: "the processor lacks avx512f")
    with refused(InputError, "kernels cannot be had here: the processor lacks avx512f"):
        ouroboros.load(models["target"], method="autoregressive", engine="kernels")


def test_the_embedded_pair_in_transformers() -> None:
    prompt = "def add(a, b):\n"
    texts = [ouroboros.load(backend=name).generate(prompt, max_new_tokens=30).token_ids for name in ("native", "auto")]
    assert ouroboros.load(backend="transformers").generate(prompt, max_new_tokens=30).token_ids == texts[0] == texts[1]


def test_loaded_modules_of_other_architectures(others: Mapping[str, Path]) -> None:
    decoder = ouroboros.load(gpt2(1), gpt2(2))
    assert decoder.target.info.backend == "transformers"
    assert continued(decoder) == continued(ouroboros.load(others["gpt2"], method="autoregressive"))


def test_what_no_backend_can_use(others: Mapping[str, Path], tmp_path: Path) -> None:
    with refused(LoadError, repr(str(others["mamba"])), "'mamba'", "rolled back"):
        ouroboros.load(others["mamba"], method="autoregressive")
    with refused(LoadError, repr(str(others["t5"])), "'t5'", "decoder"):
        ouroboros.load(others["t5"], method="autoregressive")
    with refused(LoadError, "'mamba'"):
        ouroboros.load(MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=16)), method="autoregressive")
    unknown = Path(shutil.copytree(others["gpt2"], tmp_path / "unknown"))
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps(config | {"model_type": "gpt99"}))
    with refused(LoadError, repr(str(unknown)), "gpt99"):
        ouroboros.load(unknown, method="autoregressive")


def test_quantised_checkpoints_go_to_transformers(models: Mapping[str, Path], tmp_path: Path) -> None:
    """Its quantisers are not installed here: it is transformers that says so."""
    path = Path(shutil.copytree(models["bare target"], tmp_path / "quantised"))
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (path / "config.json").write_text(json.dumps(config))
    with refused(LoadError, repr(str(path))):
        ouroboros.load(path, method="autoregressive")
    with refused(UnsupportedArchitecture, repr(str(path)), "quantised"):
        ouroboros.load(path, method="autoregressive", backend="native")


def test_quantised_modules_go_to_transformers() -> None:
    module = llama(1)
    plain = continued(ouroboros.load(module, method="autoregressive"))
    module.config.quantization_config = {"quant_method": "awq", "bits": 4}
    decoder = ouroboros.load(module, method="autoregressive")
    assert (continued(decoder), decoder.target.info.backend) == (plain, "transformers")
    with refused(UnsupportedArchitecture, "LlamaForCausalLM", "quantised"):
        ouroboros.load(module, method="autoregressive", backend="native")


def test_device_map(models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(InputError, "device_map", "backend"):
        ouroboros.load(models["target"], method="autoregressive", backend="native", device_map="auto")
    with refused(InputError, "device_map", "device"):
        ouroboros.load(models["target"], method="autoregressive", device="cpu", device_map="auto")
    with refused(InputError, "device_map", "GPT2LMHeadModel"):
        ouroboros.load(gpt2(), method="autoregressive", device_map="auto")
    seen = []
    original = AutoModelForCausalLM.from_pretrained

    def watch(*args: Any, **settings: Any) -> Any:
        seen.append(settings.pop("device_map"))
        return original(*args, **settings)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watch)
    decoder = ouroboros.load(models["target"], models["draft"], device_map="auto")
    assert (seen, decoder.target.info.backend) == (["auto"], "transformers")


# -------------------------------------------------------------------------------------------------- loaded models


def test_loaded_modules(models: Mapping[str, Path]) -> None:
    expected = continued(ouroboros.load(models["bare target"], models["bare draft"]))
    decoder = ouroboros.load(llama(1), llama(2))
    assert continued(decoder) == expected
    assert (decoder.tokenizer, decoder.target.info.backend) == (None, "native")
    for target, draft in ((llama(1), models["bare draft"]), (models["bare target"], llama(2))):
        assert continued(ouroboros.load(target, draft)) == expected


def test_loaded_module_with_a_tokenizer(models: Mapping[str, Path]) -> None:
    for tokenizer in (words(), models["target"], str(models["target"]), Tokenizer.wrap(words())):
        result = ouroboros.load(llama(1), llama(2), tokenizer).generate("w5 w6 w7", max_new_tokens=3)
        assert result.prompt_token_ids == (5, 6, 7)
        assert result.text is not None
        assert result.text.split() == [f"w{token}" for token in result.token_ids]


def test_native_models(models: Mapping[str, Path]) -> None:
    first = ouroboros.load(models["bare target"], models["bare draft"])
    second = ouroboros.load(first.target, first.draft)
    assert second.target is first.target
    assert second.draft is first.draft
    assert continued(second) == continued(first)


@pytest.mark.parametrize("model", [7, 1.5, ["a", "b"], object(), torch.zeros(3, 3)], ids=lambda m: type(m).__name__)
def test_neither_a_path_nor_a_model(models: Mapping[str, Path], model: Any) -> None:
    for pair in ({"target": model, "draft": models["draft"]}, {"target": models["target"], "draft": model}):
        with refused(InputError, "directory", "hub id", "loaded model", type(model).__name__):
            ouroboros.load(**pair)


def test_a_tokenizer_is_no_model() -> None:
    with refused(InputError, "loaded model", "not "):
        ouroboros.load(words(), method="autoregressive")


def test_a_module_of_another_kind(models: Mapping[str, Path]) -> None:
    with refused(LoadError, "transformers model", "Linear"):
        ouroboros.load(models["target"], torch.nn.Linear(2, 2))


@pytest.mark.parametrize("tokenizer", [5, 1.5, ["w0"]], ids=str)
def test_no_tokenizer(models: Mapping[str, Path], tokenizer: object) -> None:
    with refused(InputError, "tokenizer", type(tokenizer).__name__):
        ouroboros.load(models["target"], tokenizer=tokenizer, method="autoregressive")


def test_no_directory_of_a_tokenizer(models: Mapping[str, Path]) -> None:
    with refused(LoadError, "tokenizer", "directory"):
        ouroboros.load(models["target"], tokenizer=models["target"] / "config.json", method="autoregressive")
    with refused(LoadError, "tokenizer", "directory"):
        ouroboros.load(models["target"], tokenizer=models["bare target"], method="autoregressive")


def test_hub_ids(models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The revision is the target's; the token serves both."""
    calls = []

    def fetch(name: str, revision: str | None, token: str | None, **_: object) -> str:
        calls.append((name, revision, token))
        return str(models[name.split("/")[1]])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    ouroboros.load("owner/target", "owner/draft", revision="a-revision", token="a-token")
    assert calls == [("owner/target", "a-revision", "a-token"), ("owner/draft", None, "a-token")]


# -------------------------------------------------------------------------------- end of sequence, dtype, device


def test_end_of_sequence_of_both_files(models: Mapping[str, Path], tmp_path: Path) -> None:
    plain = ouroboros.load(models["target"], method="autoregressive")
    fourth = continued(plain)[3]
    path = shutil.copytree(models["target"], tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"eos_token_id": fourth}))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1000, 1001]}))
    decoder = ouroboros.load(path, method="autoregressive")
    assert decoder.target.info.eos_token_ids == {fourth, 1000, 1001}
    expected = continued(plain)
    assert continued(decoder) == expected[: expected.index(fourth) + 1]
    assert continued(decoder, ignore_eos=True) == expected


def test_end_of_sequence_of_the_tokenizer_where_the_model_names_none() -> None:
    free = continued(ouroboros.load(llama(1), method="autoregressive"))
    decoder = ouroboros.load(llama(1), tokenizer=words(eos=f"w{free[3]}"), method="autoregressive")
    assert continued(decoder) == free[: free.index(free[3]) + 1]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", torch.float16], ids=str)
def test_dtype(pair: Mapping[str, Any], dtype: Any) -> None:
    decoder = ouroboros.load(**pair, dtype=dtype, device="cpu")
    name = str(dtype).removeprefix("torch.")
    assert decoder.draft is not None
    assert decoder.target.info.dtype == name
    kernels = decoder.target.info.engine == "kernels"
    assert decoder.draft.info.dtype == ("w8a8" if name == "bfloat16" and kernels else name)
    same = ouroboros.load(**pair, dtype=dtype, draft_dtype=dtype, device="cpu")
    assert same.draft is not None
    assert same.draft.info.dtype == name
    stats = decoder.generate([5], max_new_tokens=2).stats
    assert (stats.dtype, stats.device, stats.backend) == (name, "cpu", "native")


def test_auto_dtype_is_each_models_own(models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    target: LlamaForCausalLM = llama(1).to(getattr(torch, "bfloat16"))  # noqa: B009
    decoder = ouroboros.load(target, models["bare draft"], device="cpu")
    assert decoder.draft is not None
    kernels = decoder.target.info.engine == "kernels"
    assert (decoder.target.info.dtype, decoder.draft.info.dtype) == ("bfloat16", "w8a8" if kernels else "float32")
    embedded = ouroboros.load(method="autoregressive", device="cpu")
    assert embedded.target.info.dtype == "float32"  # small, on a CPU
    monkeypatch.setattr(loading, "SMALL", 1)
    embedded = ouroboros.load(method="autoregressive", device="cpu")
    assert embedded.target.info.dtype == "bfloat16"


def test_wrong_dtype_and_device(pair: Mapping[str, Any]) -> None:
    with refused(InputError, "dtype", "'int3'", "bfloat16"):
        ouroboros.load(**pair, dtype="int3")
    with refused(InputError, "device", "'gpu'", "cuda:N"):
        ouroboros.load(**pair, device="gpu")


# -------------------------------------------------------------------------------------------------------- options


def test_options(pair: Mapping[str, Any]) -> None:
    options = SpeculativeOptions(draft_tokens=3)
    assert ouroboros.load(**pair, method="speculative", options=options).options is options
    assert ouroboros.load(**pair, method="speculative", options={"draft_tokens": 3}).options == options
    assert ouroboros.load(**pair, method="speculative", options={}).options == SpeculativeOptions()
    changes = {"window": 0, "min_chance": 0.5, "reuse": False}
    assert ouroboros.load(**pair, options=changes).options == options_for("ouroboros", changes)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (OuroborosOptions(), ["'speculative'", "SpeculativeOptions", "OuroborosOptions("]),
        (MethodOptions(), ["SpeculativeOptions", "MethodOptions("]),
        (5, ["SpeculativeOptions", "5"]),
        ("draft_tokens=3", ["SpeculativeOptions", "'draft_tokens=3'"]),
        ([("draft_tokens", 3)], ["SpeculativeOptions", "[("]),
        (SpeculativeOptions, ["SpeculativeOptions", "class"]),
        ({"gamma": 3}, ["'speculative'", "'gamma'", "draft_tokens"]),
        ({3: 3}, ["3", "draft_tokens"]),
        ({"draft_tokens": 0}, ["draft_tokens", "from 1 to 128", "0"]),
        ({"draft_tokens": 2.0}, ["draft_tokens", "whole number", "2.0"]),
        ({"draft_tokens": True}, ["draft_tokens", "whole number", "True"]),
        ({"draft_tokens": None}, ["draft_tokens", "whole number", "None"]),
        ({"draft_tokens": [3]}, ["draft_tokens", "whole number", "[3]"]),
    ],
    ids=str,
)
def test_wrong_options(pair: Mapping[str, Any], options: Any, parts: list[str]) -> None:
    with refused(InputError, *parts):
        ouroboros.load(**pair, method="speculative", options=options)


def test_a_method_without_options(models: Mapping[str, Path]) -> None:
    with refused(InputError, "'autoregressive'", "'draft_tokens'", "none"):
        ouroboros.load(models["target"], method="autoregressive", options={"draft_tokens": 3})


# ----------------------------------------------------------------------------------------------------------- pool


def test_own_pool_lives_as_long_as_the_decoder(pair: Mapping[str, Any]) -> None:
    decoder = ouroboros.load(**pair)
    assert isinstance(decoder.pool, PhrasePool)
    assert len(decoder.pool) == 0
    continued(decoder)
    assert len(decoder.pool) > 0
    decoder.close()  # saves nowhere


def test_no_pool(pair: Mapping[str, Any]) -> None:
    decoder = ouroboros.load(**pair, pool=False, options={"control": False})  # a controller learns without a pool too
    first = decoder.generate([5, 6, 7], max_new_tokens=12, seed=1)
    second = decoder.generate([5, 6, 7], max_new_tokens=12, seed=1)
    assert decoder.pool is None
    assert first.stats.draft_tokens == second.stats.draft_tokens
    decoder.close()


def test_pool_of_yours(pair: Mapping[str, Any]) -> None:
    pool = PhrasePool()  # an empty one is false in a condition
    first, second = ouroboros.load(**pair, pool=pool), ouroboros.load(**pair, pool=pool)
    assert first.pool is second.pool is pool
    continued(first)
    assert len(pool) > 0


@pytest.mark.parametrize("kind", [str, Path])
def test_pool_file(pair: Mapping[str, Any], tmp_path: Path, kind: type) -> None:
    file = tmp_path / "phrases.pool"
    with ouroboros.load(**pair, pool=kind(file)) as decoder:
        continued(decoder)
        assert not file.exists()
        assert decoder.pool is not None
        kept = len(decoder.pool)
    assert file.is_file()
    again = ouroboros.load(**pair, pool=kind(file))
    assert again.pool is not None
    assert len(again.pool) == kept > 0


def test_pool_that_is_only_read(pair: Mapping[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "phrases.pool"
    with refused(PoolFileError, repr(str(file))):
        ouroboros.load(**pair, pool=file, pool_read_only=True)
    with ouroboros.load(**pair, pool=file) as decoder:
        continued(decoder)
    before = file.read_bytes()
    with ouroboros.load(**pair, pool=file, pool_read_only=True) as decoder:
        assert decoder.pool is not None
        assert len(decoder.pool) > 0
        continued(decoder, (50, 40, 30))
    assert file.read_bytes() == before


def test_pool_file_that_cannot_be(pair: Mapping[str, Any], tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "phrases.pool"
    with refused(InputError, repr(str(missing)), repr(str(missing.parent))):
        ouroboros.load(**pair, pool=missing)
    with refused(PoolFileError, repr(str(tmp_path))):
        ouroboros.load(**pair, pool=tmp_path)
    with refused(PoolFileError, "config.json"):
        ouroboros.load(**pair, pool=pair["target"] / "config.json")
    with refused(PoolFileError, "model.safetensors", "no phrase pool"):
        ouroboros.load(**pair, pool=pair["target"] / "model.safetensors")


def test_pool_of_another_vocabulary(pair: Mapping[str, Any], models: Mapping[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "phrases.pool"
    with ouroboros.load(**pair, pool=file) as decoder:
        continued(decoder)
    with refused(PoolFileError, repr(str(file)), "another vocabulary"):
        ouroboros.load(models["bare target"], models["bare draft"], pool=file)
    with refused(PoolFileError, repr(str(file)), "another vocabulary"):
        ouroboros.load(models["foreign draft"], pool=file, method="lookahead")


@pytest.mark.parametrize("pool", [True, 5, 0, ["phrases.pool"], object], ids=str)
def test_pool_of_the_wrong_type(pair: Mapping[str, Any], pool: Any) -> None:
    with refused(InputError, "pool", "None, False, a path or a PhrasePool", repr(pool)):
        ouroboros.load(**pair, pool=pool)


# ------------------------------------------------------------------------------------------- without a tokenizer


@pytest.mark.parametrize("method", METHODS)
def test_without_a_tokenizer(models: Mapping[str, Path], method: str) -> None:
    draft = models["bare draft"] if method in WITH_DRAFT else None
    decoder = ouroboros.load(models["bare target"], draft, method=method)
    assert decoder.tokenizer is None
    result = decoder.generate([5, 6, 7], max_new_tokens=4)
    assert result.text is None
    assert len(result.token_ids) == 4
    chunks = list(decoder.stream([5, 6, 7], max_new_tokens=4))
    assert sum((chunk.token_ids for chunk in chunks), ()) == result.token_ids
    assert all(chunk.text == "" for chunk in chunks)


def test_what_needs_a_tokenizer_is_refused(models: Mapping[str, Path]) -> None:
    decoder = ouroboros.load(models["bare target"], method="autoregressive")
    with refused(InputError, "tokenizer", "token ids"):
        decoder.generate("w5")
    with refused(InputError, "tokenizer", "token ids"):
        decoder.generate([[5, 6], "w5"])
    with refused(InputError, "stop", "tokenizer", "('w5',)"):
        decoder.generate([5], stop="w5")


# ----------------------------------------------------------------------------------------------------- both files


def test_a_broken_draft_is_named(models: Mapping[str, Path], tmp_path: Path) -> None:
    draft = Path(shutil.copytree(models["draft"], tmp_path / "draft"))
    (draft / "model.safetensors").unlink()
    with refused(LoadError, repr(str(draft)), "safetensors"):
        ouroboros.load(models["target"], draft)


def test_a_broken_tokenizer_is_named(models: Mapping[str, Path], tmp_path: Path) -> None:
    target = Path(shutil.copytree(models["target"], tmp_path / "target"))
    (target / "tokenizer.json").write_text("{")
    with refused(LoadError, repr(str(target)), "tokenizer"):
        ouroboros.load(target, method="autoregressive")


def test_costs_are_known_where_sizes_are_chosen_by_them(pair: Mapping[str, Any]) -> None:
    chosen = ouroboros.load(**pair)
    assert chosen.control._costs
    assert chosen.generate([1, 2, 3], max_new_tokens=4).decisions
    for more in ({"options": {"control": False}}, {"method": "speculative"}):
        fixed = ouroboros.load(**pair, **more)
        assert not fixed.generate([1, 2, 3], max_new_tokens=4).decisions
        assert not fixed.control._costs


def test_a_target_alone_is_decoded_by_the_best_method_without_a_draft(caplog: pytest.LogCaptureFixture) -> None:
    with ouroboros.load(EMBEDDED / "target") as decoder:
        assert (decoder.method, decoder.draft) == ("suffix_decoding", None)
        assert decoder.generate("def f(", max_new_tokens=4).stats.method == "suffix_decoding"
    assert [record.getMessage() for record in caplog.records] == [
        "no draft model was given: decoding by suffix_decoding, the best method without one"
    ]
    for refused in ({"options": {"window": 2}}, {"method": "speculative"}, {"draft_dtype": "float32"}):
        with pytest.raises(InputError, match="needs a draft model: give one, or a method that needs none"):
            ouroboros.load(EMBEDDED / "target", **refused)
