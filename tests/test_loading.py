"""What cannot be loaded exactly is refused: one line that names the value at fault and what is allowed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, LlamaModel

from ouroboros.errors import InputError, LoadError, OuroborosError
from ouroboros.models import loading
from ouroboros.models.base import ScoreRequest
from ouroboros.models.loading import load_directory, load_module, pick_device, pick_dtype, resolve
from ouroboros.tree import TokenTree

CPU = torch.device("cpu")
GONE = "(gone)"  # a key that config.json lacks


def tiny(dtype: str = "float32") -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    module: LlamaForCausalLM = LlamaForCausalLM(config).to(getattr(torch, dtype))
    return module


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written")
    tiny().save_pretrained(path)
    return path


@pytest.fixture
def checkpoint(written: Path, tmp_path: Path) -> Path:
    """A good checkpoint, to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "checkpoint"))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    path = tmp_path / "shards"
    tiny().save_pretrained(path, max_shard_size="8KB")
    return path


@contextmanager
def refused(*words: str, kind: type[OuroborosError] = LoadError) -> Iterator[None]:
    """The block must raise exactly this error, in one line, with all these words."""
    with pytest.raises(OuroborosError) as caught:
        yield
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    assert len(message) < 500
    for word in words:
        assert word in message


def load(path: Path, dtype: Any = "auto") -> Any:
    return load_directory(path, dtype, CPU)


def edit(path: Path, changes: Mapping[str, object]) -> None:
    file = path / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in config.items() if value != GONE}))


def change_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def test_the_good_one_loads(checkpoint: Path, shards: Path) -> None:
    for path in (checkpoint, shards):
        info = load(path).info
        assert (info.backend, info.vocab_size, info.max_positions) == ("native", 61, 512)
        assert (info.dtype, info.device) == ("float32", "cpu")


# ------------------------------------------------------------------------------------------------- directories, hub


@pytest.mark.parametrize("name", ["nowhere", "nowhere/to/be/found", "./owner/name", "owner/", "~nobody_here/model"])
def test_no_directory(name: str) -> None:
    with refused("no such directory", name):
        resolve(name)


def test_too_long_a_name() -> None:
    with refused("no such directory", "xxx"):
        resolve("x" * 5000)


def test_missing_directory_by_its_path(tmp_path: Path) -> None:
    with refused("no such directory", "absent"):
        resolve(tmp_path / "absent")


def test_a_file_for_a_directory(checkpoint: Path) -> None:
    with refused("model.safetensors", "is a file", "directory"):
        resolve(checkpoint / "model.safetensors")


def test_a_directory_is_taken_as_it_is(checkpoint: Path) -> None:
    assert resolve(checkpoint) == checkpoint
    assert resolve(str(checkpoint)) == checkpoint


def test_a_directory_goes_before_the_hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent.parent)
    name = f"{checkpoint.parent.name}/{checkpoint.name}"
    assert resolve(name) == Path(name)


def test_hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Mapping[str, Any]]] = []

    def fetch(name: str, **settings: Any) -> str:
        calls.append((name, settings))
        return str(checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve("owner/name", "a-revision", "a-token") == checkpoint
    ((name, settings),) = calls
    assert (name, settings["revision"], settings["token"]) == ("owner/name", "a-revision", "a-token")
    allowed = settings["allow_patterns"]
    for name in ("config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "tokenizer.model"):
        assert any(fnmatch(name, pattern) for pattern in allowed)
    assert not any(fnmatch(name, pattern) for name in ("pytorch_model.bin", "model.py") for pattern in allowed)


def test_hub_errors_become_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise OSError("404 Client Error.\n\nRepository Not Found for url: X.\nPlease log in.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with refused("'owner/name'", "no directory", "Repository Not Found"):
        resolve("owner/name")


def test_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    begun = time.monotonic()
    with refused("'owner/no-such-model'", "hub"):
        resolve("owner/no-such-model")
    assert time.monotonic() - begun < 5


def test_a_name_the_hub_does_not_allow() -> None:
    with refused("owner/na me", "hub"):
        resolve("owner/na me")


# ----------------------------------------------------------------------------------------------------- config.json


def test_empty_directory(tmp_path: Path) -> None:
    with refused(str(tmp_path), "config.json"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("contents", [b"", b"{", b"[1, 2]", b"null", b'{"a": }', b"\xff\xfe\x00", b"\x00"], ids=str)
def test_no_json(shards: Path, name: str, contents: bytes) -> None:
    (shards / name).write_bytes(contents)
    with refused(str(shards), name, "JSON"):
        load(shards)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, ["'gpt2'", "'llama'"]),
        ({"model_type": GONE}, ["None", "'llama'"]),
        ({"model_type": ["llama"]}, ["['llama']", "'llama'"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "'gelu'", "'silu'"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantised", "bfloat16"]),
        ({"vocab_size": GONE}, ["'vocab_size'", "None", "whole number"]),
        ({"hidden_size": GONE}, ["'hidden_size'", "None", "whole number"]),
        ({"intermediate_size": None}, ["'intermediate_size'", "None", "whole number"]),
        ({"num_hidden_layers": 0}, ["'num_hidden_layers'", "0", "from 1"]),
        ({"num_hidden_layers": 10**9}, ["'num_hidden_layers'", "1000000000", "10000"]),
        ({"num_attention_heads": "4"}, ["'num_attention_heads'", "'4'"]),
        ({"num_attention_heads": True}, ["'num_attention_heads'", "True"]),
        ({"num_key_value_heads": 1.5}, ["'num_key_value_heads'", "1.5"]),
        ({"hidden_size": -16}, ["'hidden_size'", "-16"]),
        ({"hidden_size": 10**30}, ["'hidden_size'", "1" + "0" * 30]),
        ({"max_position_embeddings": [512]}, ["'max_position_embeddings'", "[512]"]),
        ({"num_key_value_heads": 3}, ["num_attention_heads (4)", "num_key_value_heads (3)", "multiple"]),
        ({"num_key_value_heads": 8}, ["num_attention_heads (4)", "num_key_value_heads (8)", "multiple"]),
        (
            {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": GONE},
            ["hidden_size (16)", "multiple"],
        ),
        ({"head_dim": 7}, ["head_dim", "even", "7"]),
        ({"rms_norm_eps": "small"}, ["'rms_norm_eps'", "'small'", "number"]),
        ({"rms_norm_eps": float("nan")}, ["'rms_norm_eps'", "nan", "number"]),
        ({"rms_norm_eps": -1e-6}, ["'rms_norm_eps'", "-1e-06", "number"]),
        ({"tie_word_embeddings": "false"}, ["'tie_word_embeddings'", "'false'", "true or false"]),
        ({"attention_bias": "no"}, ["'attention_bias'", "'no'", "true or false"]),
        ({"mlp_bias": []}, ["'mlp_bias'", "[]", "true or false"]),
        ({"attention_bias": True}, ["lacks", "q_proj.bias"]),
        ({"mlp_bias": True}, ["lacks", "gate_proj.bias"]),
        ({"partial_rotary_factor": 0.5}, ["part of each head"]),
    ],
    ids=str,
)
def test_nonsense_in_config(checkpoint: Path, changes: Mapping[str, object], words: list[str]) -> None:
    edit(checkpoint, changes)
    with refused(str(checkpoint), *words):
        load(checkpoint)


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, ["'dynamic'", "not supported", "llama3, yarn"]),
        ({"type": "dynamic", "factor": 2.0}, ["'dynamic'", "not supported", "llama3, yarn"]),
        ({"rope_type": "longrope", "factor": 2.0}, ["'longrope'", "not supported", "llama3, yarn"]),
        ({"rope_type": ["linear"]}, ["['linear']", "not supported"]),
        ({"rope_type": None}, ["None", "not supported"]),
        (5, ["object", "5"]),
        ("linear", ["object", "'linear'"]),
        ([1.0], ["object", "[1.0]"]),
        ({"rope_type": "linear"}, ["'linear'", "'factor'", "None"]),
        ({"rope_type": "linear", "factor": "2"}, ["'linear'", "'factor'", "'2'"]),
        ({"rope_type": "linear", "factor": 0}, ["'linear'", "'factor'", "above 0"]),
        ({"rope_type": "linear", "factor": float("inf")}, ["'linear'", "'factor'", "inf"]),
        ({"rope_type": "yarn", "factor": True}, ["'yarn'", "'factor'", "True"]),
        ({"rope_type": "yarn", "factor": 2.0, "beta_fast": -1}, ["'yarn'", "'beta_fast'", "-1"]),
        ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1}, ["'yarn'", "'rope_theta'", "above 1"]),
        ({"rope_type": "llama3", "factor": 8.0}, ["'llama3'", "'low_freq_factor'", "None"]),
        ({"rope_type": "default", "rope_theta": 0}, ["'rope_theta'", "0", "above 1"]),
        ({"rope_type": "default", "rope_theta": "10k"}, ["'rope_theta'", "'10k'"]),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, ["part of each head"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_malformed_rope(checkpoint: Path, key: str, rope: object, words: list[str]) -> None:
    edit(checkpoint, {"rope_parameters": GONE, key: rope})
    with refused(str(checkpoint), *words):
        load(checkpoint)


def test_end_of_sequence_ids(checkpoint: Path) -> None:
    for ours, theirs, expected in [
        (2, None, {2}),
        (None, [5, 7], {5, 7}),
        (3, [5, 7], {3, 5, 7}),
        ([3, 5], 5, {3, 5}),
        (None, None, set()),
    ]:
        edit(checkpoint, {"eos_token_id": ours})
        (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": theirs}))
        assert load(checkpoint).info.eos_token_ids == expected
    (checkpoint / "generation_config.json").unlink()
    edit(checkpoint, {"eos_token_id": 9})
    assert load(checkpoint).info.eos_token_ids == {9}


# --------------------------------------------------------------------------------------------------------- tensors


@pytest.mark.parametrize("left", [0, 1, 7, 8, 100, -1])
def test_cut_short(checkpoint: Path, left: int) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with refused(str(checkpoint), "model.safetensors", "cut short"):
        load(checkpoint)


def test_no_safetensors_at_all(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(b"these are no tensors, whatever the name says")
    with refused(str(checkpoint), "model.safetensors", "damaged"):
        load(checkpoint)


def test_pickled_weights_alone(checkpoint: Path) -> None:
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with refused(str(checkpoint), "*.safetensors"):
        load(checkpoint)


def test_missing_shard(shards: Path) -> None:
    lost = sorted(shards.glob("model-*.safetensors"))[1]
    lost.unlink()
    with refused(str(shards), lost.name, "missing"):
        load(shards)


def test_short_shard(shards: Path) -> None:
    short = sorted(shards.glob("model-*.safetensors"))[1]
    short.write_bytes(short.read_bytes()[:-3])
    with refused(str(shards), short.name, "cut short"):
        load(shards)


@pytest.mark.parametrize("contents", [{}, {"weight_map": []}, {"weight_map": None}], ids=str)
def test_index_without_map(shards: Path, contents: object) -> None:
    (shards / "model.safetensors.index.json").write_text(json.dumps(contents))
    with refused(str(shards), "index.json", "weight_map"):
        load(shards)


def test_a_single_file_goes_before_an_index(checkpoint: Path) -> None:
    """So does it in transformers; the index is left from other weights."""
    (checkpoint / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "gone.safetensors"}}')
    load(checkpoint)


def test_files_of_any_name(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "weights.safetensors")
    load(checkpoint)


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "model.layers.1.self_attn.k_proj.weight"])
def test_missing_tensor(checkpoint: Path, name: str) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.pop(name))
    with refused(str(checkpoint), "lacks", repr(name)):
        load(checkpoint)


def test_many_missing_tensors(checkpoint: Path) -> None:
    edit(checkpoint, {"num_hidden_layers": 3})
    with refused("lacks", "'model.layers.2.", "and 8 more"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.embed_tokens.weight", (60, 16)),
        ("model.norm.weight", (15,)),
        ("lm_head.weight", (16, 61)),
        ("model.layers.0.self_attn.v_proj.weight", (16, 16)),
        ("model.layers.1.mlp.down_proj.weight", (16, 24, 1)),
        ("model.norm.weight", ()),
    ],
)
def test_wrong_shape(checkpoint: Path, name: str, shape: tuple[int, ...]) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    with refused(str(checkpoint), repr(name), str(list(shape)), "config.json"):
        load(checkpoint)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn], ids=str)
def test_types_that_need_scales_or_mean_nothing(checkpoint: Path, name: str, kind: torch.dtype) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.update({name: tensors[name].to(kind)}))
    with refused(str(checkpoint), repr(name), str(kind), "bfloat16"):
        load(checkpoint)


def test_tensors_of_no_use_are_let_be(checkpoint: Path) -> None:
    """As older checkpoints hold them."""
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2), "something": torch.ones(3).to(torch.int8)}
    change_tensors(checkpoint, lambda tensors: tensors.update(more))
    load(checkpoint)


def test_other_files_are_let_be(checkpoint: Path) -> None:
    (checkpoint / "pytorch_model.bin").write_bytes(b"never read")
    (checkpoint / "consolidated.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    load(checkpoint)


# ------------------------------------------------------------------------------------------------ dtype and device


@pytest.mark.parametrize("dtype", ["int8", "float8", "fp16", "", "torch.float32", torch.int8, None, 16, ["float32"]])
def test_unknown_dtype(checkpoint: Path, dtype: Any) -> None:
    with refused("dtype", repr(dtype), "auto", "float32, bfloat16, float16, float64", kind=InputError):
        load(checkpoint, dtype)


@pytest.mark.parametrize(
    "device", ["gpu", "", "tpu:0", "meta", "mps", "cuda:x", "cuda:-1", "cuda:200", "cuda:256", None, 1.5, "cpu:-1"]
)
def test_unknown_device(device: Any) -> None:
    with refused("device", repr(device), "auto, cpu, cuda", kind=InputError):
        pick_device(device)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1", "cuda:100"])
def test_no_such_cuda_device(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with refused("device", repr(device), "0 CUDA devices", kind=InputError):
        pick_device(device)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with refused("'cuda:2'", "2 CUDA devices", kind=InputError):
        pick_device("cuda:2")


BIG = loading.SMALL
CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("stored", "parameters", "device", "expected"),
    [
        (torch.bfloat16, BIG - 1, CPU, torch.float32),
        (torch.bfloat16, BIG, CPU, torch.bfloat16),
        (torch.float32, BIG, CPU, torch.float32),
        (torch.float16, BIG, CPU, torch.float32),
        (torch.float16, 1, CPU, torch.float32),
        (torch.float16, BIG, CUDA, torch.float16),
        (torch.bfloat16, 1, CUDA, torch.bfloat16),
        (torch.float32, 1, CUDA, torch.float32),
    ],
)
def test_auto_dtype(stored: torch.dtype, parameters: int, device: torch.device, expected: torch.dtype) -> None:
    assert pick_dtype("auto", stored, parameters, device) == expected
    for name, given in loading.DTYPES.items():
        assert pick_dtype(name, stored, parameters, device) == pick_dtype(given, stored, parameters, device) == given


def test_auto_dtype_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("float32", "bfloat16", "float16"):
        tiny(kind).save_pretrained(tmp_path / kind)
        assert load(tmp_path / kind).info.dtype == "float32"
    monkeypatch.setattr(loading, "SMALL", 1)
    found = {kind: load(tmp_path / kind).info.dtype for kind in ("float32", "bfloat16", "float16")}
    assert found == {"float32": "float32", "bfloat16": "bfloat16", "float16": "float32"}


# -------------------------------------------------------------------------------------------------- loaded modules


def test_loaded_module() -> None:
    module = tiny("bfloat16")
    module.generation_config.eos_token_id = [5, 7]
    assert load_module(module, "auto", "auto").info.dtype == "bfloat16"
    info = load_module(module, "float64", "cpu").info
    assert (info.dtype, info.device, info.eos_token_ids) == ("float64", "cpu", frozenset({2, 5, 7}))


def test_a_loaded_module_is_not_copied() -> None:
    module = tiny()
    model = load_module(module, "auto", "auto")

    def logits() -> Tensor:
        return model.score([ScoreRequest(model.open(), TokenTree(3))])[0]

    before = logits()
    with torch.no_grad():
        module.lm_head.weight.mul_(2)
    assert torch.equal(logits(), 2 * before)


def test_modules_of_another_kind() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    with refused("GPT2LMHeadModel", "'gpt2'", "'llama'"):
        load_module(gpt2, "auto", "auto")
    with refused("transformers model", "Linear"):
        load_module(torch.nn.Linear(2, 2), "auto", "auto")
    with refused("loaded LlamaModel", "lacks the tensor 'model.embed_tokens.weight'"):
        load_module(LlamaModel(tiny().config), "auto", "auto")


def test_module_without_weights_in_memory() -> None:
    with torch.device("meta"):
        module = LlamaForCausalLM(tiny().config)
    for device in ("auto", "cpu"):
        with refused("loaded LlamaForCausalLM", "'model.embed_tokens.weight'", "meta"):
            load_module(module, "auto", device)


def test_wrong_choices_for_a_module() -> None:
    with refused("dtype", "'int4'", kind=InputError):
        load_module(tiny(), "int4", "auto")
    with refused("device", "'gpu'", kind=InputError):
        load_module(tiny(), "auto", "gpu")
