"""What cannot be loaded exactly is refused: one line that names the value at fault and what is allowed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
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

from ouroboros.errors import InputError, LoadError, OuroborosError, UnsupportedArchitecture
from ouroboros.models import loading
from ouroboros.models.base import ScoreRequest
from ouroboros.models.loading import load_directory, load_module, pick_device, pick_dtype, resolve
from ouroboros.models.memory import available_memory, check_memory
from ouroboros.models.quantised import QUANTISED
from ouroboros.models.tensors import DTYPES
from ouroboros.tree import TokenTree

CPU = torch.device("cpu")
GONE = "(gone)"  # a key that config.json lacks


def tiny(dtype: str = "float32", layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
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
    for name in ("consolidated.safetensors", "original/params.json"):
        assert any(fnmatch(name, pattern) for pattern in settings["ignore_patterns"])


def test_hub_cache_without_a_network(checkpoint: Path, tmp_path: Path) -> None:
    """A cache as the hub's client lays it out, two revisions of one repository, found by environment variables alone.

    The client reads them when it is imported: hence another process.
    """
    repository = tmp_path / "cache" / "models--owner--name"
    for folder in ("blobs", "refs", "snapshots"):
        (repository / folder).mkdir(parents=True)
    commits = {"main": "a" * 40, "v1": "b" * 40}
    for (name, commit), layers in zip(commits.items(), (1, 2), strict=True):
        tiny(layers=layers).save_pretrained(tmp_path / name)
        (repository / "refs" / name).write_text(commit)
        (repository / "snapshots" / commit).mkdir()
        for file in (tmp_path / name).iterdir():
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            shutil.copy(file, repository / "blobs" / digest)
            (repository / "snapshots" / commit / file.name).symlink_to(f"../../blobs/{digest}")
    script = """
import sys
from ouroboros.errors import LoadError
from ouroboros.models.loading import load_directory, pick_device, resolve
for revision in (None, "main", "v1", "b" * 40, "v2"):
    try:
        path = resolve("owner/name", revision)
        print(path.name, load_directory(path, "auto", pick_device("cpu")).config.num_hidden_layers)
    except LoadError as error:
        print(error)
"""
    place = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *found, missing = done.stdout.splitlines()
    assert found == [f"{'a' * 40} 1", f"{'a' * 40} 1", f"{'b' * 40} 2", f"{'b' * 40} 2"]
    assert missing.startswith("'owner/name' is no directory, and the hub did not give it: ")


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
        ({"model_type": GONE}, ["None", "'llama'"]),
        ({"model_type": ["llama"]}, ["['llama']", "'llama'"]),
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
    ],
    ids=str,
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_malformed_rope(checkpoint: Path, key: str, rope: object, words: list[str]) -> None:
    edit(checkpoint, {"rope_parameters": GONE, key: rope})
    with refused(str(checkpoint), *words):
        load(checkpoint)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, ["model_type", "'gpt2'", "'llama'", "'mistral'", "'qwen2'", "'qwen3'"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantised", "bfloat16"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "'gelu'", "'silu'"]),
        ({"hidden_act": None}, ["hidden_act", "None", "'silu'"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5", "1.0"]),
        ({"final_logit_softcapping": 30.0}, ["final_logit_softcapping", "30.0", "None"]),
        ({"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping", "50.0", "None"]),
        ({"clip_qkv": 8}, ["clip_qkv", "8", "None"]),
        ({"logit_scale": 0.25}, ["logit_scale", "0.25", "1.0"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["'dynamic'", "as the text grows", "llama3, yarn"]),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, ["'dynamic'", "as the text grows", "llama3, yarn"]),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, ["'longrope'", "as the text grows", "linear"]),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1]}}, ["'mrope'", "not supported", "llama3, yarn"]),
        ({"rope_scaling": {"rope_theta": 9.0, "partial_rotary_factor": 0.5}}, ["partial_rotary_factor", "0.5"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 9.0}}}, ["'full_attention'", "rope parameters"]),
        ({"model_type": "phi3", "rope_scaling": {"type": "yarn", "factor": 2.0}}, ["rope_type", "'yarn'", "'default'"]),
        (
            {"model_type": "mistral", "layer_types": ["full_attention", "linear"]},
            ["layer_types", "'linear'", "sliding"],
        ),
    ],
    ids=str,
)
def test_other_mathematics(checkpoint: Path, changes: Mapping[str, object], words: list[str]) -> None:
    """Refused by an error of its own, for another implementation may well compute it."""
    edit(checkpoint, changes)
    with refused(str(checkpoint), *words, kind=UnsupportedArchitecture):
        load(checkpoint)


def test_another_architecture_with_pickled_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    with refused(str(tmp_path), "'gpt2'", kind=UnsupportedArchitecture):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mistral", "sliding_window": 0}, ["'sliding_window'", "0", "from 1"]),
        ({"model_type": "mistral", "sliding_window": "4096"}, ["'sliding_window'", "'4096'"]),
        ({"model_type": "mistral", "layer_types": ["full_attention"]}, ["'layer_types'", "2 layers", "full_attention"]),
        ({"model_type": "mistral", "layer_types": "full_attention"}, ["'layer_types'", "2 layers", "full_attention"]),
        (
            {"model_type": "mistral", "layer_types": ["sliding_attention"] * 2, "sliding_window": None},
            ["'sliding_window'", "None"],
        ),
        ({"model_type": "qwen2", "use_sliding_window": "yes"}, ["'use_sliding_window'", "'yes'"]),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": -1}, ["'max_window_layers'", "-1"]),
        ({"model_type": "qwen2"}, ["lacks", "q_proj.bias"]),
        ({"model_type": "qwen3", "head_dim": 4}, ["lacks", "q_norm.weight"]),
        ({"model_type": "qwen3", "head_dim": GONE}, ["lacks", "q_norm.weight"]),
        ({"model_type": "phi3"}, ["lacks", "qkv_proj.weight", "and 3 more"]),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, ["'no_rope_layers'", "[1]"]),
        ({"model_type": "smollm3", "no_rope_layers": [1, 2]}, ["'no_rope_layers'", "[1, 2]"]),
        ({"model_type": "smollm3", "no_rope_layer_interval": 0}, ["'no_rope_layer_interval'", "0"]),
        ({"model_type": "granite", "logits_scaling": 0}, ["'logits_scaling'", "0"]),
        ({"model_type": "granite", "residual_multiplier": "1"}, ["'residual_multiplier'", "'1'", "number"]),
        ({"model_type": "granite", "attention_multiplier": float("nan")}, ["'attention_multiplier'", "nan", "number"]),
    ],
    ids=str,
)
def test_nonsense_in_config_of_a_family(checkpoint: Path, changes: Mapping[str, object], words: list[str]) -> None:
    edit(checkpoint, changes)
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
    for wrong in (2.5, True, "x", [[1]], {"a": 1}):
        edit(checkpoint, {"eos_token_id": wrong})
        with refused("eos_token_id", "a token id"):
            load(checkpoint)


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
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    change_tensors(checkpoint, lambda tensors: tensors.update(more))
    load(checkpoint)


def test_other_files_are_let_be(checkpoint: Path) -> None:
    (checkpoint / "pytorch_model.bin").write_bytes(b"never read")
    (checkpoint / "consolidated.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    load(checkpoint)


# ------------------------------------------------------------------------------------------------ dtype and device


@pytest.mark.parametrize("dtype", ["int3", "float8", "fp16", "", "torch.float32", torch.int8, None, 16, ["float32"]])
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
    for name, given in DTYPES.items():
        assert pick_dtype(name, stored, parameters, device) == pick_dtype(given, stored, parameters, device) == given


@pytest.mark.parametrize("weights", QUANTISED)
def test_quantised_weights(checkpoint: Path, weights: str) -> None:
    """The user's choice, from files and from memory."""
    assert load(checkpoint, weights).info.dtype == weights
    assert load_module(tiny("float32"), weights, "cpu").info.dtype == weights


def test_auto_dtype_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("float32", "bfloat16", "float16"):
        tiny(kind).save_pretrained(tmp_path / kind)
        assert load(tmp_path / kind).info.dtype == "float32"
    monkeypatch.setattr(loading, "SMALL", 1)
    found = {kind: load(tmp_path / kind).info.dtype for kind in ("float32", "bfloat16", "float16")}
    assert found == {"float32": "float32", "bfloat16": "bfloat16", "float16": "float32"}


# ---------------------------------------------------------------------------------------------------------- memory


@pytest.fixture
def files(tmp_path: Path) -> Callable[[Mapping[str, str]], Callable[[], int | None]]:
    """What Linux tells of memory, made up."""

    def make(contents: Mapping[str, str]) -> Callable[[], int | None]:
        for name, text in contents.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return lambda: available_memory(CPU, tmp_path / "proc", tmp_path / "cgroup")

    return make


MEMINFO = {"proc/meminfo": "MemTotal:  100 kB\nMemFree:  10 kB\nMemAvailable:  50 kB\nHugePages_Total:  0\n"}


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({}, 50 * 1024),
        ({"proc/self/cgroup": "0::/\n"}, 50 * 1024),
        # Version 2: the least of what each group on the way up has left; file pages count as free.
        ({"proc/self/cgroup": "0::/a/b\n", "cgroup/a/memory.max": "9000", "cgroup/a/memory.current": "7000"}, 2000),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "cgroup/a/b/memory.max": "max",
                "cgroup/a/b/memory.current": "7000",
                "cgroup/a/memory.max": "9000",
                "cgroup/a/memory.current": "7000",
                "cgroup/a/memory.stat": "anon 5000\nfile 1500\ninactive_file 900\nactive_file 600\n",
                "cgroup/memory.max": "20000",
                "cgroup/memory.current": "7000",
            },
            3500,
        ),
        ({"proc/self/cgroup": "0::/host\n", "cgroup/memory.max": "900", "cgroup/memory.current": "1000"}, 0),
        # Version 1, as a container sees it: the path is the host's.
        (
            {
                "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/docker/x\n0::/\n",
                "cgroup/memory/memory.limit_in_bytes": "8000",
                "cgroup/memory/memory.usage_in_bytes": "5000",
                "cgroup/memory/memory.stat": "total_inactive_file 500\ntotal_active_file 100\ninactive_file 1\n",
            },
            3600,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/\n",
                "cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096),
                "cgroup/memory/memory.usage_in_bytes": "5000",
            },
            50 * 1024,
        ),
        ({"proc/self/cgroup": "nonsense\n4:memory\n"}, 50 * 1024),
    ],
    ids=str,
)
def test_available_memory(
    files: Callable[[Mapping[str, str]], Callable[[], int | None]], contents: Mapping[str, str], expected: int
) -> None:
    assert files({**MEMINFO, **contents})() == expected


def test_available_memory_where_linux_says_nothing(
    files: Callable[[Mapping[str, str]], Callable[[], int | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = files({})
    found = measure()
    assert found is not None
    assert found > 10**8
    monkeypatch.delattr(os, "sysconf")  # as on Windows
    assert measure() is None
    check_memory(10**18, measure(), CPU, torch.float32)  # nobody knows: go ahead


def test_available_memory_of_this_machine() -> None:
    found = available_memory(CPU)
    assert found is not None
    assert 10**7 < found < 10**14


def test_available_memory_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch holds and does not use can be had too."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 200)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 50)
    assert available_memory(CUDA) == 850


def test_weights_that_do_not_fit() -> None:
    check_memory(5, 5, CPU, torch.float32)
    with refused("bfloat16", "need 140.00 GB", "'cuda'", "has 79.50 GB available"):
        check_memory(140 * 10**9, 79_500_000_000, CUDA, torch.bfloat16)


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2), ("float16", 2), ("float64", 8)])
def test_memory_is_checked_before_loading(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, width: int
) -> None:
    needed = width * tiny().num_parameters()
    monkeypatch.setattr(loading, "available_memory", lambda device: needed)
    load(checkpoint, dtype)
    monkeypatch.setattr(loading, "available_memory", lambda device: needed - 1)
    with refused(str(checkpoint), f"the weights in {dtype} need 0.00 GB", "'cpu' has 0.00 GB"):
        load(checkpoint, dtype)


@pytest.mark.parametrize(("weights", "layer", "head"), [("int8", 1, 1), ("int4", 18 / 32, 1)])
def test_memory_of_quantised_weights(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, weights: str, layer: float, head: float
) -> None:
    parameters = dict(tiny().named_parameters())
    embedding = parameters.pop("model.embed_tokens.weight").numel()
    output = parameters.pop("lm_head.weight").numel()
    norms = sum(tensor.numel() for tensor in parameters.values() if tensor.dim() == 1)
    layers = sum(tensor.numel() for tensor in parameters.values()) - norms
    needed = math.ceil(2 * embedding + head * output + 4 * norms + layer * layers)
    monkeypatch.setattr(loading, "available_memory", lambda device: needed)
    load(checkpoint, weights)
    monkeypatch.setattr(loading, "available_memory", lambda device: needed - 1)
    with refused(f"the weights in {weights} need"):
        load(checkpoint, weights)


def test_a_loaded_module_needs_memory_for_what_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny()
    stacked = 2 * (16 * 16 + 2 * 8 * 16 + 2 * 24 * 16)  # queries, keys, values; gate and up
    for dtype, needed in (("auto", 4 * stacked), ("float64", 8 * module.num_parameters())):
        monkeypatch.setattr(loading, "available_memory", lambda device, needed=needed: needed)
        load_module(module, dtype, "auto")
        monkeypatch.setattr(loading, "available_memory", lambda device, needed=needed: needed - 1)
        with refused("LlamaForCausalLM", "need 0.00 GB"):
            load_module(module, dtype, "auto")


# -------------------------------------------------------------------------------------------------- loaded modules


def test_loaded_module() -> None:
    module = tiny("bfloat16")
    module.generation_config.eos_token_id = [5, 7]
    assert load_module(module, "auto", "auto").info.dtype == "bfloat16"
    info = load_module(module, "float64", "cpu").info
    assert (info.dtype, info.device, info.eos_token_ids) == ("float64", "cpu", frozenset({2, 5, 7}))


def test_a_loaded_module_is_not_copied() -> None:
    """By PyTorch's operators; kernels pack it anew."""
    module = tiny("float16")
    model = load_module(module, "auto", "auto")

    def logits() -> Tensor:
        return model.score([ScoreRequest(model.open(), TokenTree(3))])[0]

    before = logits()
    with torch.no_grad():
        module.lm_head.weight.mul_(2)
    assert torch.equal(logits(), 2 * before)


def test_modules_of_another_kind() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    with refused("GPT2LMHeadModel", "'gpt2'", "'llama'", kind=UnsupportedArchitecture):
        load_module(gpt2, "auto", "auto")
    with refused("transformers model", "Linear"):
        load_module(torch.nn.Linear(2, 2), "auto", "auto")
    with refused("loaded LlamaModel", "lacks the tensor 'model.embed_tokens.weight'"):
        load_module(LlamaModel(tiny().config), "auto", "auto")


def test_module_without_weights_in_memory() -> None:
    with torch.device("meta"):
        module = LlamaForCausalLM(tiny().config)
    for device in ("auto", "cpu"):
        with refused("loaded LlamaForCausalLM", ".weight' is not in memory", "meta"):
            load_module(module, "auto", device)


def test_wrong_choices_for_a_module() -> None:
    with refused("dtype", "'int3'", kind=InputError):
        load_module(tiny(), "int3", "auto")
    with refused("device", "'gpu'", kind=InputError):
        load_module(tiny(), "auto", "gpu")
