"""Checkpoints are not believed: their code never runs, and whatever else is odd about their files is one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import ouroboros
from ouroboros.bench.records import read_results
from ouroboros.bench.sources import read_rows
from ouroboros.control import machine
from ouroboros.control.profile import CostProfile, load_profile, save_profile
from ouroboros.control.tuned import load_tuned
from ouroboros.errors import InputError, LoadError
from ouroboros.models.base import ModelInfo
from ouroboros.prompts import read_prompts
from ouroboros.text import Tokenizer
from ouroboros.training.modules import read_module
from ouroboros.training.records import read_records
from ouroboros.training.settings import WORK, stored_settings
from tests.chat_words import EMBEDDED
from tests.test_cli import environment, real_command

CPU = torch.device("cpu")
CODE = "own.Own"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED, tmp_path / "model"))


@pytest.fixture
def coded(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkpoint with Python code that leaves a file ``marker``; standard input says that it may run."""
    (checkpoint / "own.py").write_text(
        f"open({str(tmp_path / 'marker')!r}, 'w').close()\n"
        "from transformers import LlamaConfig as OwnConfig, LlamaForCausalLM as OwnModel\n"
        "from transformers import PreTrainedTokenizerFast as Own\n"
    )
    (checkpoint / "custom_generate").mkdir()
    shutil.copy(checkpoint / "own.py", checkpoint / "custom_generate" / "generate.py")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    return checkpoint


def edit(path: Path, name: str, **changes: object) -> None:
    values = json.loads((path / name).read_text()) | changes
    (path / name).write_text(json.dumps(values))


@contextlib.contextmanager
def refused(*words: str) -> Iterator[None]:
    with pytest.raises(LoadError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    for word in words:
        assert word in message


def load(path: Any, **settings: Any) -> Any:
    return ouroboros.load(path, method="autoregressive", **settings)


# ----------------------------------------------------------------------------------------------------------- code


@pytest.mark.parametrize("auto_map", [{"AutoTokenizer": [CODE, None]}, {"AutoTokenizer": [None, CODE]}, [CODE, CODE]])
@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "Own", "LlamaTokenizer"])
def test_code_of_a_tokenizer_never_runs(coded: Path, tmp_path: Path, auto_map: object, kind: str) -> None:
    edit(coded, "tokenizer_config.json", auto_map=auto_map, tokenizer_class=kind)
    with refused("tokenizer_config.json", "Python code", CODE, "never run", "tokenizer="):
        load(coded)
    with refused("never run"):
        Tokenizer.wrap(coded)
    assert load(coded, tokenizer=EMBEDDED).generate("def f", max_new_tokens=1).text is not None
    assert not (tmp_path / "marker").exists()


def test_code_of_a_tokenizer_named_in_the_model_never_runs(coded: Path, tmp_path: Path) -> None:
    edit(coded, "config.json", auto_map={"AutoTokenizer": [CODE, None]})
    with refused("config.json", "never run"):
        load(coded)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("backend", ["auto", "transformers"])
@pytest.mark.parametrize("kind", ["llama", "own"])
def test_code_of_a_model_never_runs(coded: Path, tmp_path: Path, backend: str, kind: str) -> None:
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit(coded, "config.json", auto_map=names, model_type=kind)
    with refused("code of", "not run" if kind == "own" else "never run"):
        load(coded, backend=backend)
    with refused("cannot train with"):
        read_module(coded, "auto", CPU)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("backend", ["auto", "transformers"])
def test_code_that_transformers_has_itself_is_not_needed(coded: Path, tmp_path: Path, backend: str) -> None:
    """As Phi 3 comes: with the files of the class that has become transformers' own."""
    edit(coded, "config.json", auto_map={"AutoModelForCausalLM": "own.LlamaForCausalLM"})
    assert load(coded, backend=backend).generate("def f", max_new_tokens=1).token_ids
    read_module(coded, "auto", CPU)
    assert not (tmp_path / "marker").exists()


def test_the_answer_is_never_asked_for_on_standard_input(coded: Path, tmp_path: Path) -> None:
    edit(coded, "tokenizer_config.json", auto_map={"AutoTokenizer": [CODE, None]}, tokenizer_class="Own")
    for command in (["generate", "-"], ["chat"]):
        done = subprocess.run(
            real_command(*command, "--target", str(coded), "--method", "lookahead"),
            input=b"y\ny\n",
            capture_output=True,
            env=environment(),
            timeout=100,
            check=False,
        )
        assert done.returncode == 2
        assert done.stdout == b""
        assert b"never run" in done.stderr
        assert done.stderr.count(b"\n") == 1
    assert not (tmp_path / "marker").exists()


# ---------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_nested_json(checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_text('{"a": ' + "[" * 200_000)
    for backend in ("auto", "transformers"):
        with refused(str(checkpoint), name if backend == "auto" else ""):
            load(checkpoint, backend=backend)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_nested_files_of_a_tokenizer(checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_text('{"model": ' + "[" * 200_000 if name == "tokenizer.json" else "{{" * 50_000)
    if name == "tokenizer.json":
        with refused(str(checkpoint)):
            load(checkpoint)
    else:
        with pytest.raises(ouroboros.InputError, match="chat template"):
            load(checkpoint).generate([{"role": "user", "content": "a"}], max_new_tokens=1)


def test_a_nested_index(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "part.safetensors")
    index = checkpoint / "model.safetensors.index.json"
    index.write_text('{"weight_map": ' * 100_000)
    with refused("model.safetensors.index.json", "nested"):
        load(checkpoint)
    for name in ("../part.safetensors", "/etc/passwd", "a\0b", "..", ""):
        index.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
        with refused("cannot be read" if "\0" in name else "model.safetensors.index.json"):
            load(checkpoint)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("backend", ["auto", "transformers"])
def test_a_pipe_in_place_of_a_file(checkpoint: Path, name: str, backend: str) -> None:
    (checkpoint / name).unlink(missing_ok=True)
    os.mkfifo(checkpoint / name)
    with refused(str(checkpoint), name, "no regular file"):
        load(checkpoint, backend=backend)
    with refused(name):
        read_module(checkpoint, "auto", CPU)
    if "token" in name:
        with refused(name):
            Tokenizer.wrap(checkpoint)


def test_a_pipe_among_shards(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    os.mkfifo(checkpoint / "some.safetensors")
    with refused("some.safetensors", "no regular file"):
        load(checkpoint)


def test_words_without_an_unknown_one(checkpoint: Path) -> None:
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    rust = RustTokenizer(WordLevel({"a": 0, "b": 1}, unk_token="<unk>"))
    rust.save(str(checkpoint / "tokenizer.json"))
    with refused(str(checkpoint), "cannot encode every text", "unknown"):
        load(checkpoint)
    generic: Any = PreTrainedTokenizerFast
    with pytest.raises(ouroboros.InputError, match="cannot encode this text"):
        Tokenizer.wrap(generic(tokenizer_object=rust)).encode("c")


# -------------------------------------------------------------------------------------------------------- weights


def change_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.1.mlp.down_proj.weight_scale",
    ],
)
@pytest.mark.parametrize("backend", ["auto", "native", "transformers"])
def test_tensors_that_the_architecture_does_not_have(checkpoint: Path, name: str, backend: str) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.update({name: torch.ones(4)}))
    with refused(str(checkpoint), repr(name), "architecture"):
        load(checkpoint, backend=backend)


@pytest.mark.parametrize("name", ["something", "score.weight", "model.layers.99.mlp.up_proj.weight"])
def test_tensors_of_other_layers_and_heads(checkpoint: Path, name: str) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.update({name: torch.ones(4)}))
    with refused(repr(name), "'llama'"):
        load(checkpoint)


def test_an_adapter_beside_the_weights(checkpoint: Path) -> None:
    (checkpoint / "adapter_config.json").write_text("{}")
    with refused("adapter_config.json", "not applied"):
        load(checkpoint)


def test_a_module_with_tensors_of_its_own_is_run_by_transformers() -> None:
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    assert load(module).target.info.backend == "native"
    module.model.layers[0].self_attn.q_proj.bias = torch.nn.Parameter(
        torch.ones(module.config.hidden_size, dtype=module.dtype)
    )
    assert load(module).target.info.backend == "transformers"


@pytest.mark.parametrize("tied", [True, False])
def test_an_output_matrix_beside_tied_embeddings(tmp_path: Path, tied: bool) -> None:
    """As transformers has it: another matrix than the embeddings is used."""
    from tests.test_loading import tiny

    module = tiny()
    module.save_pretrained(tmp_path)
    edit(tmp_path, "config.json", tie_word_embeddings=True)
    if tied:
        head = "lm_head.weight"
        change_tensors(tmp_path, lambda tensors: tensors.update({head: tensors["model.embed_tokens.weight"].clone()}))
    tokens = [
        load(tmp_path, backend=name).generate([1, 2, 3], max_new_tokens=8).token_ids
        for name in ("native", "transformers")
    ]
    assert tokens[0] == tokens[1]
    shape = load(tmp_path).target.config.tie_word_embeddings
    assert shape is tied


NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.1.self_attn.k_proj.weight",
    "model.layers.1.self_attn.v_proj.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.1.mlp.gate_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", NAMES)
def test_a_weight_that_is_no_number_is_found_wherever_it_is(tmp_path: Path, name: str, value: float) -> None:
    from tests.test_loading import tiny

    tiny().save_pretrained(tmp_path)

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[-3] = value

    change_tensors(tmp_path, change)
    for backend in ("native", "transformers"):
        with refused(str(tmp_path), name if backend == "native" else "hold", "finite number"):
            load(tmp_path, backend=backend)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("backend", ["native", "transformers"])
def test_weights_that_are_all_nothing(checkpoint: Path, value: float, backend: str) -> None:
    change_tensors(checkpoint, lambda tensors: [tensor.fill_(value) for tensor in tensors.values()])
    with refused(str(checkpoint), "tensor 'model.", "zeros alone" if value == 0 else "finite number"):
        load(checkpoint, backend=backend)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4", "w8a8"])
def test_types_of_weights(tmp_path: Path, dtype: str) -> None:
    from tests.test_loading import tiny

    tiny().save_pretrained(tmp_path)
    load(tmp_path, dtype=dtype)
    name = "model.layers.1.mlp.up_proj.weight"
    change_tensors(tmp_path, lambda tensors: tensors[name].view(-1)[7:8].fill_(float("nan")))
    with refused(name):
        load(tmp_path, dtype=dtype)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_is_finite_is_torchs(kind: torch.dtype) -> None:
    from ouroboros.models.sound import is_finite

    most = torch.finfo(kind).max
    for value in (0.0, -0.0, 1.0, -1.0, most, -most, float("inf"), float("-inf"), float("nan"), -float("nan")):
        tensor = torch.full((3, 100), 0.5, dtype=kind)
        tensor[1, 7] = value
        assert is_finite(tensor) is bool(torch.isfinite(tensor).all()), value
        assert is_finite(tensor.T) is is_finite(tensor)
    assert is_finite(torch.zeros(0, dtype=kind))


@pytest.mark.parametrize("ends", [10**9, -1, [0, 10**30]])
def test_a_grammar_beside_end_tokens_that_never_come(checkpoint: Path, ends: object) -> None:
    pytest.importorskip("llguidance")
    edit(checkpoint, "config.json", eos_token_id=ends)
    (checkpoint / "generation_config.json").unlink()
    assert load(checkpoint).generate("def f", max_new_tokens=4, grammar={"regex": "[0-9]{2}"}).text.isdigit()


def test_nested_json_in_files_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line where somebody asked for the file; as if it were not there where it is kept for speed."""
    file = tmp_path / "file.jsonl"
    file.write_text('{"a": ' + "[" * 200_000)
    asked: list[Callable[[], object]] = [
        lambda: read_prompts(str(file)),
        lambda: read_results(file),
        lambda: read_rows(str(file), "test"),
    ]
    for read in asked:
        with pytest.raises(InputError, match=r"file\.jsonl") as caught:
            read()
        assert "\n" not in str(caught.value)
    records = tmp_path / "records.jsonl"
    records.write_text(file.read_text() + "\n")
    with pytest.raises(InputError, match="is no recorded generation"):
        read_records(records)
    assert load_tuned(file) is None
    assert load_profile(file) is None
    info = ModelInfo("native", 5, 9, frozenset(), 100, "float32", "cpu")
    measured = machine.Speeds(1e9, 1e9, 1.0, 1e-5)
    monkeypatch.setattr(machine, "_measure", lambda info: measured)
    spoilt = '{"format": 1, "bytes": Infinity, "products": 1e9, "exponent": 1.0, "layer": 1e-5}'
    for text in (file.read_text(), spoilt, "null"):
        machine._path(info, tmp_path).write_text(text)
        assert machine.speeds_of(info, tmp_path) == measured
    (tmp_path / "out" / WORK).mkdir(parents=True)
    (tmp_path / "out" / WORK / "settings.json").write_text(file.read_text())
    with pytest.raises(InputError, match="holds no training to resume"):
        stored_settings(str(tmp_path / "out"), {})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0])
def test_a_saved_profile_whose_numbers_are_none_is_measured_again(tmp_path: Path, value: float) -> None:
    profile = CostProfile("m", "here", (1, 8), (0,), ((0.1, 0.2),), ((0.0, 0.0),))
    save_profile(profile, tmp_path / "sound.json")
    assert load_profile(tmp_path / "sound.json") == profile
    broken = dataclasses.replace(profile, seconds=((0.1, value),))
    save_profile(broken, tmp_path / "broken.json")
    assert load_profile(tmp_path / "broken.json") is None
