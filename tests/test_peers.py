"""Peers on small random models: their greedy tokens are plain decoding's; one that cannot run says why."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ouroboros
from ouroboros.bench.peers import PEERS, Absent, Peer, PeerResult, open_peers
from ouroboros.bench.peers import llama as llama_module
from ouroboros.bench.peers.llama_worker import convert, describe, tensors
from ouroboros.errors import InputError, LoadError
from tests.pairs import random_weights, tiny_config

TRANSFORMERS = PEERS[:3]
LLAMA = PEERS[3:5]
PROGRAMS = PEERS[5:]
PROMPT = [5, 6, 7, 8, 5, 6, 7, 8, 5, 6]
GREEDY: dict[str, Any] = {"temperature": 0.0, "seed": 0, "ignore_eos": True}
INSTALLED = all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf"))


def checkpoint(path: Path, seed: int = 1, blur: float = 0.0, **changes: Any) -> str:
    """A small random model in Hugging Face layout; ``blur``: how far it is from the one of seed 1."""
    config = {**tiny_config(vocab_size=changes.get("vocab_size", 40)), **changes}
    weights, noise = random_weights(config, seed), random_weights(config, seed + 1)
    path.mkdir()
    tensors = {name: (tensor + blur * noise[name]).float() for name, tensor in weights.items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    return str(path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("pair")
    return checkpoint(folder / "target"), checkpoint(folder / "draft", blur=0.1)


@pytest.fixture(scope="module")
def plain(pair: tuple[str, str]) -> ouroboros.Decoder:
    return ouroboros.load(pair[0], method="autoregressive", dtype="float32")


def opened(names: Any, target: str, draft: str | None, **more: Any) -> list[Peer]:
    peers = open_peers(names, target=target, draft=draft, dtype="float32", threads=1, **more)
    assert not any(isinstance(peer, Absent) for peer in peers), peers
    return [peer for peer in peers if not isinstance(peer, Absent)]


# ---------------------------------------------------------------------------------------------------- transformers


@pytest.fixture
def peers(pair: tuple[str, str]) -> Iterator[list[Peer]]:
    found = opened(TRANSFORMERS, *pair)
    yield found
    for peer in found:
        peer.close()
        peer.close()


def test_greedy_tokens_are_those_of_plain_decoding(peers: list[Peer], plain: ouroboros.Decoder) -> None:
    expected = plain.generate(PROMPT, max_new_tokens=32, ignore_eos=True).token_ids
    assert len(set(expected)) > 3
    for peer in peers:
        result = peer.generate(PROMPT, 32, **GREEDY)
        assert result.token_ids == expected, peer.name
        assert result.prefill_seconds > 0
        assert result.decode_seconds > 0
        assert 0 < result.decoded_tokens < 32
        assert result.decoded_tokens == 31 or peer.name != "transformers"


def test_samples_repeat_and_leave_the_callers_generator_alone(peers: list[Peer]) -> None:
    for peer in peers:
        sampled = {**GREEDY, "temperature": 1.5}
        torch.manual_seed(1)
        first = peer.generate(PROMPT, 24, **sampled).token_ids
        drawn = torch.rand(1)
        torch.manual_seed(1)
        assert torch.equal(torch.rand(1), drawn)
        assert peer.generate(PROMPT, 24, **sampled).token_ids == first
        assert peer.generate(PROMPT, 24, **{**sampled, "seed": 1}).token_ids != first


def test_the_end_of_text_ends_it_unless_it_is_ignored(tmp_path: Path, plain: ouroboros.Decoder) -> None:
    expected = plain.generate(PROMPT, max_new_tokens=24, ignore_eos=True).token_ids
    end = next(token for token in expected[4:] if token not in expected[:4])
    target = checkpoint(tmp_path / "t", eos_token_id=end)
    # What a checkpoint says of sampling is not done, as the library does not.
    (tmp_path / "t" / "generation_config.json").write_text('{"do_sample": true, "repetition_penalty": 9.0}')
    for peer in opened(TRANSFORMERS, target, target):
        cut = peer.generate(PROMPT, 24, **{**GREEDY, "ignore_eos": False}).token_ids
        assert cut == expected[: expected.index(end) + 1], peer.name
        assert peer.generate(PROMPT, 24, **GREEDY).token_ids == expected, peer.name
        peer.close()


def test_weights_are_shared_and_given_back(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from ouroboros.bench.peers import generate

    loaded = []
    load = generate._load
    monkeypatch.setattr(generate, "_load", lambda path, *rest: loaded.append(path) or load(path, *rest))  # type: ignore[func-returns-value]
    first, second, third = opened(TRANSFORMERS, *pair)
    assert [str(path) for path in loaded] == list(pair)
    first.close()
    second.close()
    assert third.generate(PROMPT, 2, **GREEDY).token_ids
    weights = third._weights  # type: ignore[attr-defined]
    assert weights.modules
    third.close()
    assert not weights.modules


def test_draft_tokens_are_set(pair: tuple[str, str]) -> None:
    chosen = {"transformers-assisted": 3, "transformers-prompt-lookup": 4}
    assisted, lookup = opened(TRANSFORMERS[1:], *pair, draft_tokens=chosen)
    assert assisted.settings["num_assistant_tokens"] == 3
    assert lookup.settings["prompt_lookup_num_tokens"] == 4
    for peer in (assisted, lookup):
        assert len(peer.generate(PROMPT, 9, **GREEDY).token_ids) == 9
        peer.close()


def test_what_cannot_run_is_absent(tmp_path: Path, pair: tuple[str, str]) -> None:
    other = checkpoint(tmp_path / "other", vocab_size=41)
    settings: dict[str, Any] = {"dtype": "float32", "threads": 1}
    plain, assisted = open_peers(TRANSFORMERS[:2], target=pair[0], draft=None, **settings)
    assert not isinstance(plain, Absent)
    plain.close()
    assert assisted == Absent("transformers-assisted", "needs a draft model, and there is none")
    (assisted,) = open_peers(TRANSFORMERS[1:2], target=pair[0], draft=other, **settings)
    assert isinstance(assisted, Absent)
    assert assisted.reason == "generate takes an assistant with as many tokens: it has 41, not 40"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "nothing"}')
    for absent in open_peers(PEERS, target=str(tmp_path / "empty"), draft=None, **settings):
        assert isinstance(absent, Absent)
        assert "\n" not in absent.reason
        assert "nothing" in absent.reason


def test_bad_input(pair: tuple[str, str]) -> None:
    settings: dict[str, Any] = {"target": pair[0], "draft": None, "dtype": "float32", "threads": None}
    assert open_peers([], **settings) == []
    with pytest.raises(InputError, match=r"peer must be one of transformers, .*, not 'vllm'"):
        open_peers(["vllm"], **settings)
    with pytest.raises(InputError, match="peer must be one of"):
        open_peers([], draft_tokens={"vllm": 3}, **settings)
    with pytest.raises(InputError, match="draft tokens of a peer must be at least 1, not 0"):
        open_peers([], draft_tokens={"llama.cpp-prompt-lookup": 0}, **settings)
    with pytest.raises(LoadError, match="no such directory"):
        open_peers(["transformers"], **{**settings, "target": "/nowhere/at/all"})
    for dtype in ("int8", "auto"):
        with pytest.raises(InputError, match=f"dtype of the peers must be one of float32, .*, not '{dtype}'"):
            open_peers(["transformers"], **{**settings, "dtype": dtype})


# ------------------------------------------------------------------------------------------------------- llama.cpp

FAKE = """
import json, os, sys
command, *rest = sys.argv[1:]
out = os.fdopen(os.dup(1), "w")
def say(line):
    print(json.dumps(line), file=out, flush=True)
print("noise of a library", file=sys.stderr)
if command == "convert":
    open(rest[1], "w").write(rest[2])
    say({"ready": {}})
    sys.exit()
say({"ready": {"llama_cpp_python": "9", "heard": [open(rest[0]).read(), *rest[1:]]}})
for line in sys.stdin:
    asked = json.loads(line)
    if asked["new_tokens"] > 100:
        say({"error": "ValueError: too many"})
    elif asked["new_tokens"] > 50:
        print("Segmentation fault", file=sys.stderr)
        sys.exit(3)
    else:
        tokens = asked["prompt"][: asked["new_tokens"]] + [asked["seed"], asked["lookup"] or 0, *asked["end"]]
        say({"token_ids": tokens, "prefill_seconds": 0.25, "decode_seconds": 0.5})
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "fake_worker.py"
    file.write_text(FAKE)
    monkeypatch.setattr(llama_module, "WORKER", file)
    return file


def test_the_worker_is_asked_and_answers(worker: Path, tmp_path: Path) -> None:
    target = checkpoint(tmp_path / "t", eos_token_id=[9, 3])
    plain, lookup = opened(LLAMA, target, None)
    assert plain.settings["heard"] == ["float32", "512", "1", "float32"]
    assert (plain.settings["dtype"], plain.settings["threads"]) == ("float32", 1)
    assert lookup.settings["num_pred_tokens"] == 10
    assert plain.generate(PROMPT, 2, **GREEDY) == PeerResult((5, 6, 0, 0), 0.25, 0.5, 4)
    asked = {"temperature": 0.5, "seed": 2**32 + 7, "ignore_eos": False}
    assert lookup.generate(PROMPT, 1, **asked).token_ids == (5, 7, 10, 3, 9)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"llama\.cpp: ValueError: too many"):
        plain.generate(PROMPT, 101, **GREEDY)
    plain.close()
    assert lookup.generate(PROMPT, 1, **GREEDY).token_ids == (5, 0, 10)
    folder = lookup._llama.folder  # type: ignore[attr-defined]
    assert folder.exists()
    lookup.close()
    lookup.close()
    assert not folder.exists()


def test_a_worker_that_ends_is_one_line(worker: Path, tmp_path: Path) -> None:
    (plain,) = opened(LLAMA[:1], checkpoint(tmp_path / "t"), None)
    with pytest.raises(LoadError, match=r"^the llama\.cpp process ended: Segmentation fault$"):
        plain.generate(PROMPT, 51, **GREEDY)
    plain.close()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import json; json.loads('x' * 3)", "the llama.cpp process ended: json.decoder.JSONDecodeError"),
        ("import os; os._exit(1)", "the llama.cpp process ended: without a word"),
        (
            """print('{"error": "ModuleNotFoundError: No module named \\'gguf\\'"}')""",
            "No module named 'gguf' in {python}: pip install llama-cpp-python gguf",
        ),
    ],
)
def test_a_worker_that_does_not_start_is_absent(worker: Path, tmp_path: Path, script: str, reason: str) -> None:
    worker.write_text(script)
    settings: dict[str, Any] = {"target": checkpoint(tmp_path / "t"), "draft": None, "dtype": "float32", "threads": 1}
    for absent in open_peers(LLAMA, **settings):
        assert isinstance(absent, Absent)
        assert absent.reason.startswith(reason.format(python=sys.executable)), absent.reason
    (absent,) = open_peers(LLAMA[:1], llama_python="/nowhere/python", **settings)
    assert absent == Absent("llama.cpp", "cannot start '/nowhere/python': No such file or directory")


PROGRAM = """#!{python}
import json, sys
asked = dict(zip(sys.argv[1::2], sys.argv[2::2]))
prompt = open(asked["-f"]).read()
if asked["-s"] == "9":
    sys.exit("first\\nllama_decode failed\\n")
print("\\n\\n" + prompt + "<1><2>\\033[0;96m<3>\\033[0m<4>")
open({heard!r}, "w").write(json.dumps(asked))
print("0.1 I encoded    6 tokens in    0.250 seconds, speed: 1 t/s", file=sys.stderr)
print("0.1 I decoded    4 tokens in    2.000 seconds, speed: 2 t/s", file=sys.stderr)
"""


def test_programs_on_the_path(worker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, draft = checkpoint(tmp_path / "t"), checkpoint(tmp_path / "d")
    settings: dict[str, Any] = {"target": target, "draft": draft, "dtype": "float32", "threads": 1}
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert open_peers(PROGRAMS[1:2], **settings) == [
        Absent("llama.cpp-lookahead", "llama-lookahead is not on the PATH; it comes with llama.cpp")
    ]
    (tmp_path / "bin").mkdir()
    for name in ("llama-lookahead", "llama-lookup", "llama-speculative-simple"):
        file = tmp_path / "bin" / name
        file.write_text(PROGRAM.format(python=sys.executable, heard=str(tmp_path / name)))
        file.chmod(0o755)
    chosen = {"llama.cpp-speculative": 5}
    speculative, lookahead, lookup = opened(PROGRAMS, target, draft, draft_tokens=chosen)
    for peer in (speculative, lookahead, lookup):
        asked = {**GREEDY, "temperature": 0.5}
        assert peer.generate(PROMPT, 3, **asked) == PeerResult((1, 2, 3), 0.25, 1.5, 3)
        heard = json.loads((tmp_path / str(peer.settings["program"])).read_text())
        assert (heard["-n"], heard["-t"], heard["--temp"]) == ("2", "1", "0.5")
        assert Path(heard["-m"]).name == "target.gguf"
        assert ("-md" in heard, "--spec-draft-n-max" in heard) == (peer is speculative, peer is speculative)
    with pytest.raises(InputError, match="ignore_eos must be set"):
        lookup.generate(PROMPT, 3, **{**GREEDY, "ignore_eos": False})
    with pytest.raises(LoadError, match=r"ended with status 1: llama_decode failed$"):
        lookup.generate(PROMPT, 3, **{**GREEDY, "seed": 9})
    with pytest.raises(LoadError, match="ended with status 0"):
        lookup.generate(PROMPT, 30, **GREEDY)  # it wrote too little
    for peer in (speculative, lookahead, lookup):
        peer.close()
    (absent,) = open_peers(PROGRAMS[:1], **{**settings, "draft": None})
    assert absent == Absent("llama.cpp-speculative", "needs a draft model, and there is none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma"}, "weights are written for llama, mistral, qwen2, not for gemma"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rotary embeddings that are scaled"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding-window"),
        ({"mlp_bias": True}, "biases of the feed-forward layers"),
    ],
)
def test_models_that_are_not_written_for_llama_cpp(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        describe({**tiny_config(), **changes})


def test_what_config_and_weights_say(tmp_path: Path) -> None:
    assert describe(tiny_config()) == ("llama", 10_000.0)
    later = {key: value for key, value in tiny_config().items() if key != "rope_theta"}
    assert describe({**later, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}) == ("llama", 5e5)
    unused = {"sliding_window": 64, "use_sliding_window": False}
    assert describe({**tiny_config(), "model_type": "qwen2", **unused})[0] == "qwen2"
    values = torch.randn(3, 5)
    save_file({"a": values, "b": values.bfloat16(), "c": values.half()}, tmp_path / "model.safetensors")
    found = {name: (stored, data) for name, stored, data in tensors(tmp_path)}
    assert {name: stored for name, (stored, _) in found.items()} == {"a": "F32", "b": "BF16", "c": "F16"}
    assert np.array_equal(found["a"][1], values.numpy())
    assert np.array_equal(found["b"][1], values.bfloat16().view(torch.uint16).numpy())


@pytest.mark.skipif(not INSTALLED, reason="llama-cpp-python and gguf are not installed")
@pytest.mark.parametrize(("kind", "heads"), [("llama", 2), ("llama", 4), ("qwen2", 2)])
def test_llama_cpp_writes_what_plain_decoding_writes(tmp_path: Path, kind: str, heads: int) -> None:
    # ggml's vectors are 32 wide
    sizes: dict[str, Any] = {
        "model_type": kind,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_key_value_heads": heads,
    }
    target = checkpoint(tmp_path / "t", **sizes)
    expected = ouroboros.load(target, method="autoregressive", dtype="float32").generate(
        PROMPT, max_new_tokens=24, ignore_eos=True
    )
    assert len(set(expected.token_ids)) > 3
    for peer in opened(LLAMA, target, None):
        for prompt in (PROMPT, PROMPT[:1], PROMPT):
            result = peer.generate(prompt, 24, **GREEDY)
            assert len(result.token_ids) == result.decoded_tokens == 24
        assert result.token_ids == expected.token_ids, peer.name
        sampled = peer.generate(PROMPT, 24, **{**GREEDY, "temperature": 1.0}).token_ids
        assert peer.generate(PROMPT, 24, **{**GREEDY, "temperature": 1.0}).token_ids == sampled
        with pytest.raises(InputError, match="more than the model's context of 512"):
            peer.generate(PROMPT, 600, **GREEDY)
        peer.close()


@pytest.mark.skipif(not INSTALLED or not shutil.which("llama-lookup"), reason="llama.cpp's programs are not installed")
def test_llama_cpp_programs_write_what_plain_decoding_writes(tmp_path: Path) -> None:
    # llama-lookahead begins with the tokens 100 to 114
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 120}
    target, draft = checkpoint(tmp_path / "t", **sizes), checkpoint(tmp_path / "d", blur=0.1, **sizes)
    decoder = ouroboros.load(target, method="autoregressive", dtype="float32")
    expected = decoder.generate(PROMPT, max_new_tokens=24, ignore_eos=True).token_ids
    for peer in opened(PROGRAMS, target, draft):
        assert peer.generate(PROMPT, 24, **GREEDY).token_ids == expected, peer.name
        peer.close()


@pytest.mark.skipif(not INSTALLED, reason="llama-cpp-python and gguf are not installed")
def test_gguf_in_every_type(tmp_path: Path) -> None:
    checkpoint(tmp_path / "t")
    sizes = []
    for dtype in ("bfloat16", "float16", "float32"):
        convert(tmp_path / "t", tmp_path / dtype, dtype)
        sizes.append((tmp_path / dtype).stat().st_size)
    assert sizes[0] == sizes[1] < sizes[2]
    with pytest.raises(ValueError, match="not as float64"):
        convert(tmp_path / "t", tmp_path / "x", "float64")
