"""Checkpoints are not believed: their code never runs, and whatever else is odd about their files is one line."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ouroboros
from ouroboros.errors import LoadError
from ouroboros.text import Tokenizer
from ouroboros.training.modules import read_module
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


def load(path: Path, **settings: Any) -> Any:
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
