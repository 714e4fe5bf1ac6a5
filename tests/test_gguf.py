"""GGUF files as models: the logits of transformers' model of the same weights, whatever wrote and stored them how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

import ouroboros
from ouroboros.cli import main
from ouroboros.errors import LoadError
from ouroboros.kernels.library import instructions
from ouroboros.models.gguf import GGUFTensors, read_gguf
from ouroboros.models.hub_files import choose
from ouroboros.models.llama import LlamaModel
from ouroboros.models.loading import load_directory, resolve
from ouroboros.text import Tokenizer
from tests.gguf_files import byte_vocabulary, describe, numbers_of, tensors_of, write_gguf
from tests.pairs import unsettled
from tests.test_families import FULL, GEMMA3, MODELS, SLIDING
from tests.test_native_decoder import BASE, CPU, LLAMA3, YARN, Both, chain, close, life_cycle, score, text

LONG: Mapping[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.1, 1.5, 2.0],
    "long_factor": [1.0, 3.0, 5.0, 9.0],
    "original_max_position_embeddings": 256,
}
PLAIN = (
    *("Llama 2", "DeepSeek-coder", "Yi", "mistral", "qwen2", "qwen2, yarn", "qwen3", "phi3", "phi3, window", "smollm3"),
    *("granite", "gemma2, window"),
)
CASES: Mapping[str, Mapping[str, Any]] = {
    **{name: MODELS[name] for name in PLAIN},
    "llama3": {"model_type": "llama", "head_dim": 16, "rope_parameters": dict(LLAMA3)},
    "llama, biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "yarn": {"model_type": "llama", "head_dim": 16, "rope_parameters": {**YARN, "rope_theta": 700.0}},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 16, **GEMMA3, "num_hidden_layers": 7,
               "sliding_window_pattern": 6},
    "gemma3, linear": {"model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": 6,
                       "sliding_window": 16, "rope_parameters": {
                           FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
                           SLIDING: {"rope_type": "default", "rope_theta": 70.0}}},
}  # fmt: skip


def random_module(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    head = {"query_pre_attn_scalar": changes["head_dim"]} if "gemma" in changes["model_type"] else {}
    config = AutoConfig.for_model(
        **{**BASE, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, **changes, **head}
    )
    module: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return unsettled(module)


def load(path: Path, dtype: str = "float32", engine: str = "auto") -> LlamaModel:
    return load_directory(path, dtype, CPU, engine)


@pytest.mark.parametrize("name", CASES)
def test_families(tmp_path: Path, name: str) -> None:
    module = random_module(**CASES[name])
    path = write_gguf(tmp_path / "model.gguf", describe(module), tensors_of(module))
    model = load(path)
    assert model.info.parameters == module.num_parameters()
    assert model.info.stored == "F32"
    life_cycle(Both(model, module))


@pytest.mark.parametrize("name", ["Llama 2", "qwen2", "qwen3", "gemma2, window"])
def test_transformers_reads_the_same(tmp_path: Path, name: str) -> None:
    """An independent reader of the same file: names, order of rows and norms are no invention of these tests."""
    module = random_module(**{**CASES[name], "head_dim": 8})
    tokens = {"tokenizer.ggml.tokens": [f"t{i}" for i in range(89)]}
    path = write_gguf(tmp_path / "model.gguf", describe(module, **tokens), tensors_of(module))
    theirs = load_gguf_checkpoint(path, return_tensors=True, model_to_load=module)["tensors"]
    mine = read_gguf(path).weights
    added = 1 if "gemma" in name else 0  # which the file has, and transformers takes away
    assert isinstance(mine, GGUFTensors)
    assert set(mine.names()) == set(theirs)
    for key, tensor in theirs.items():
        close(mine.get(key) - (added if "norm" in key else 0), tensor, 1e-6)


def test_long_factors_end_at_the_original_context(tmp_path: Path) -> None:
    module = random_module(model_type="phi3", rope_parameters=dict(LONG), original_max_position_embeddings=256)
    model = load(write_gguf(tmp_path / "model.gguf", describe(module), tensors_of(module)))
    assert model.info.max_positions == 256
    life_cycle(Both(model, module))


AUTO = "float32" if instructions() is None else "stored"  # what a small file is computed in
MIXED = {"attn_q": "Q4_K", "attn_k": "Q5_K", "attn_v": "Q6_K", "attn_output": "Q5_0", "ffn_gate": "Q4_0",
         "ffn_up": "Q8_0", "ffn_down": "F16", "token_embd": "Q6_K", "output.": "BF16"}  # fmt: skip


@pytest.mark.parametrize("name", ["Llama 2", "qwen2", "gemma2, window"])
def test_mixed_types(tmp_path: Path, name: str) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "tie_word_embeddings": False}
    module = random_module(**{**CASES[name], **sizes, "initializer_range": 0.05})
    tensors = tensors_of(module, MIXED)
    assert len({stored.kind for stored in tensors.values()}) == 9
    model = load(write_gguf(tmp_path / "model.gguf", describe(module), tensors))
    assert set(str(model.info.stored).split(", ")) == set(MIXED.values())
    life_cycle(Both(model, module))
    assert numbers_of(tensors["output.weight"]).any()
    rounded, exact = load(tmp_path / "model.gguf", "bfloat16", "plain"), score(model, model.open(), chain(text(40)))
    assert rounded.info.dtype == "bfloat16"
    close(score(rounded, rounded.open(), chain(text(40))).float(), exact, 0.1)


# --------------------------------------------------------------------------------------------------------- generation


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a vocabulary of bytes."""
    return written(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def written(path: Path, **changes: Any) -> Path:
    module = random_module(**{"model_type": "llama", "vocab_size": 270, **changes})
    return write_gguf(path, describe(module, **byte_vocabulary(270)), tensors_of(module, {"ffn_gate": "Q8_0"}))


def test_a_pair_of_files(file: Path, tmp_path: Path) -> None:
    """As target and draft, by path and as text; what is written is what the target alone writes."""
    draft = written(tmp_path / "draft.gguf", num_hidden_layers=1)
    plain = ouroboros.load(file, method="autoregressive")
    expected = plain.generate("hello world", max_new_tokens=24, ignore_eos=True)
    for method in ("ouroboros", "speculative"):
        with ouroboros.load(str(file), str(draft), method=method) as decoder:
            assert decoder.generate("hello world", max_new_tokens=24, ignore_eos=True).token_ids == expected.token_ids
    assert plain.target.info.stored == "F32, Q8_0"
    assert plain.target.info.dtype == AUTO


def test_what_the_file_says_of_text(file: Path) -> None:
    """The vocabulary, its control tokens and ends, the template: transformers has all of it from the file."""
    decoder = ouroboros.load(file, method="autoregressive")
    words = decoder.tokenizer
    assert words is not None
    vocabulary = byte_vocabulary(270)["tokenizer.ggml.tokens"]
    end, turn, think = (vocabulary.index(name) for name in ("<|end|>", "<|turn|>", "<think>"))
    assert words.eos_token_id == end
    assert decoder.target.info.eos_token_ids == {end}
    assert words.encode("<|turn|>he<think>")[:2] == [turn, vocabulary.index("he")]
    assert words.encode("<think>") == [think]
    assert words.decode(words.encode("ä <think>\n<|turn|>")) == "ä <think>\n"
    assert words.vocab_size == think + 1
    assert words.apply_chat_template([{"role": "user", "content": "he"}]) == [turn, vocabulary.index("he")]
    assert Tokenizer.wrap(file).fingerprint == words.fingerprint


def test_command_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--target", str(file), "--method", "prompt_lookup", "--max-new-tokens", "5", "--json", "he"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["stats"]["dtype"] == AUTO
    assert main(["generate", "--target", str(file.with_name("absent.gguf")), "he"]) == 2
    assert "absent.gguf" in capsys.readouterr().err


def test_files_without_an_ending(file: Path, tmp_path: Path) -> None:
    """As programs keep them that name files by their content."""
    blob = tmp_path / "sha256-0123"
    blob.write_bytes(file.read_bytes())
    assert load(blob).info == load(file).info


@pytest.mark.parametrize("dtype", ["auto", "float16", "float64", "int8", "int4", "w8a8"])
def test_types(file: Path, dtype: str) -> None:
    info = load(file, dtype).info
    assert (info.dtype, info.stored) == (AUTO if dtype == "auto" else dtype, "F32, Q8_0")


def test_auto_is_what_the_file_is_made_of(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ouroboros.models.loading.SMALL", 0)
    module = random_module(model_type="llama", vocab_size=270)
    half = write_gguf(
        tmp_path / "half.gguf",
        describe(module),
        tensors_of(module, dict.fromkeys(("ffn", "attn", "output", "token"), "F16")),
    )
    whole = write_gguf(tmp_path / "whole.gguf", describe(module), tensors_of(module))
    assert [load(path, "auto", "plain").info.dtype for path in (file, half, whole)] == [
        "bfloat16",
        "float32",
        "float32",
    ]


# --------------------------------------------------------------------------------------------------------------- parts


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """The model of ``file`` in three parts."""
    module = random_module(model_type="llama", vocab_size=270)
    tensors = list(tensors_of(module, {"ffn_gate": "Q8_0"}).items())
    metadata = describe(module, **byte_vocabulary(270))
    found = []
    for number in range(3):
        own = {**(metadata if number == 0 else {}), "split.no": number, "split.count": 3}
        path = tmp_path / f"tiny-{number + 1:05}-of-00003.gguf"
        found.append(write_gguf(path, own | {"split.tensors.count": len(tensors)}, dict(tensors[number::3])))
    return found


def test_parts(file: Path, parts: list[Path]) -> None:
    one = score(load(file), load(file).open(), chain(text(9)))
    for path in parts:
        model = load(path)
        assert torch.equal(score(model, model.open(), chain(text(9))), one)
    assert Tokenizer.from_directory(parts[2]) is not None


def test_bad_parts(parts: list[Path]) -> None:
    data = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(LoadError, match=r"tiny-00002-of-00003.gguf: it says that it is part 2"):
        load(parts[0])
    parts[1].write_bytes(data[:-40])
    with pytest.raises(LoadError, match=r"tiny-00002-of-00003.gguf: tensor .* cut short"):
        load(parts[0])
    parts[1].unlink()
    with pytest.raises(LoadError, match=r"one of 3 parts, and 'tiny-00002-of-00003.gguf' is not beside it"):
        load(parts[0])
    alone = parts[0].rename(parts[0].with_name("alone.gguf"))
    with pytest.raises(LoadError, match="one of 3 parts, and its name does not say which"):
        load(alone)


# ----------------------------------------------------------------------------------------------------------------- hub

NAMES = [
    "README.md", "model-Q4_K_M.gguf", "model-IQ4_XS.gguf", "model-Q4_K_S.gguf", "model-BF16-00001-of-00002.gguf",
    "model-BF16-00002-of-00002.gguf", "mmproj-model-Q4_K_M.gguf", "sub/other.q8_0.gguf", "sub/third-Q8_0.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("Q4_K_M", ["model-Q4_K_M.gguf"]),
        ("q4_k_s", ["model-Q4_K_S.gguf"]),
        ("model-IQ4_XS.gguf", ["model-IQ4_XS.gguf"]),
        ("BF16", ["model-BF16-00001-of-00002.gguf", "model-BF16-00002-of-00002.gguf"]),
        ("model-BF16-00002-of-00002.gguf", ["model-BF16-00001-of-00002.gguf", "model-BF16-00002-of-00002.gguf"]),
        ("sub/third-Q8_0.gguf", ["sub/third-Q8_0.gguf"]),
        ("other.q8_0.gguf", ["sub/other.q8_0.gguf"]),
    ],
)
def test_names_on_the_hub(what: str, expected: list[str]) -> None:
    assert choose(NAMES, what) == expected


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("Q5_0", "no GGUF files .*'Q5_0'.*model-BF16.gguf, model-IQ4_XS.gguf"),
        ("Q8_0", "several .*sub/other"),
        ("4", "no "),
    ],
)
def test_names_that_are_not_there(what: str, words: str) -> None:
    with pytest.raises(LoadError, match=words):
        choose(NAMES, what)


@pytest.mark.parametrize("offline", [False, True])
def test_hub(parts: list[Path], monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    calls = []

    def names(repository: str, **settings: Any) -> list[str]:
        if offline:
            raise OSError("no network")
        return ["config.json", *(path.name for path in parts)]

    def fetch(repository: str, **settings: Any) -> str:
        calls.append((repository, settings["revision"], settings["token"], settings["allow_patterns"]))
        return str(parts[0].parent)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", names)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve("owner/repo:tiny-00001-of-00003.gguf", "v1", "secret") == parts[0]
    patterns = [path.name for path in parts]
    assert calls[-1] == ("owner/repo", "v1", "secret", patterns)
    assert len(calls) == 1 + offline
    decoder = ouroboros.load("owner/repo:tiny-00001-of-00003.gguf", method="autoregressive")
    assert decoder.tokenizer is not None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("owner/repo:", "no such directory"),
        ("repo:Q4_K_M", "no such directory"),
        ("owner/model.gguf", "of the hub it is 'owner/name:FILE.gguf'"),
        ("owner/repo:Q4_K_M", "is no file, and the hub did not give it"),
    ],
)
def test_no_such_names(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("not found")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(LoadError, match=words):
        resolve(name)


def test_a_directory_of_files_names_one(file: Path) -> None:
    with pytest.raises(LoadError, match=r"no config.json; a GGUF file is named itself, as '.*tiny.gguf'"):
        load(file.parent)
