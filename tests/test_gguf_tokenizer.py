"""Tokenizers of GGUF files: the ids of the tokenizer that transformers makes of the same file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer

from ouroboros.text import Tokenizer
from ouroboros.text.gguf_tokenizer import PATTERNS
from tests.gguf_files import byte_vocabulary, write_gguf
from tests.gguf_texts import texts

REAL = Path(os.environ.get("OUROBOROS_REAL_MODELS", "absent"))


def theirs(path: Path) -> Any:
    """What transformers splits text with, for this file."""
    architecture, words, _ = get_gguf_tokenizer(str(path))
    return convert_gguf_tokenizer(architecture, words)[0]


def check(path: Path, mine: Tokenizer) -> None:
    other = theirs(path)
    # Its classes bring tokens of their own, such as <bos>, that a small vocabulary has not.
    foreign = [
        token for token in other.get_vocab() if token not in mine.hf.get_vocab() and not token.startswith("[PAD")
    ]
    chosen = [text for text in texts() if not any(token in text for token in foreign)]
    assert len(chosen) > 100
    wrong = [text for text in chosen if mine.hf.encode(text, add_special_tokens=False) != other.encode(text).ids]
    assert wrong == []


def pieces(*, gemma: bool = False) -> dict[str, Any]:
    """A SentencePiece vocabulary: <unk>, <s>, </s>, bytes, single letters, and what they make."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    types = [2, 3, 3] + [6] * 256
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzäöüß123.,:\n你好"]
    words = [
        "th",
        "the",
        "he",
        "▁t",
        "▁the",
        "er",
        "in",
        "▁▁",
        "▁▁▁▁",
        "an",
        "on",
        "en",
        "der",
        "▁d",
        "▁der",
        "12",
        "好你",
    ]
    if gemma:
        words = [word.replace("▁", " ") if not word.strip("▁") else word for word in words]
    found = [*words, *letters, "<turn>", "<h1>"]
    tokens, types = tokens + found, types + [1] * (len(found) - 2) + [3, 4]
    return {
        "general.architecture": "gemma3" if gemma else "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.scores": np.array([-float(i % 97) for i in range(len(tokens))], np.float32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def read(tmp_path: Path, metadata: dict[str, Any]) -> tuple[Path, Tokenizer]:
    path = write_gguf(tmp_path / "words.gguf", {"general.architecture": "llama", **metadata}, {})
    found = Tokenizer.from_directory(path)
    assert found is not None
    return path, found


@pytest.mark.parametrize("pre", sorted({"qwen2", "llama-bpe", "tekken", "gpt-4o", "default", "gpt-2"}))
def test_byte_level(tmp_path: Path, pre: str) -> None:
    merges = ["h e", "l l", "he ll", "Ġ w", "Ċ Ċ", "1 2", "Ġ Ġ", "ä ½", "' s", "a n", "e r", "i n", "Ġ t", "s p"]
    path, mine = read(tmp_path, {**byte_vocabulary(300, merges), "tokenizer.ggml.pre": pre})
    check(path, mine)
    for text in texts():
        assert mine.hf.decode(mine.hf.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("pre", PATTERNS)
def test_every_pattern_keeps_the_text(tmp_path: Path, pre: str) -> None:
    _, mine = read(tmp_path, {**byte_vocabulary(300), "tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": False})
    split = mine.hf.backend_tokenizer.pre_tokenizer
    for text in texts(60):
        assert mine.hf.decode(mine.hf.encode(text)) == text
        assert all(word for word, _ in split.pre_tokenize_str(text))
    digits = [word for word, _ in split.pre_tokenize_str("1234567")]
    longest = {"llama-bpe": 3, "gpt-4o": 3, "qwen2": 1, "smollm": 1, "tekken": 1, "deepseek-coder": 1, "gpt-2": 7}
    assert max(map(len, digits)) == longest.get(pre, max(map(len, digits)))


@pytest.mark.parametrize("kind", ["llama", "no prefix", "gemma", "phi3"])
def test_sentencepiece(tmp_path: Path, kind: str) -> None:
    metadata = pieces(gemma=kind == "gemma")
    if kind == "phi3":
        metadata["general.architecture"] = "phi3"
    if kind == "no prefix":
        metadata["tokenizer.ggml.add_space_prefix"] = False
    path, mine = read(tmp_path, metadata)
    if kind != "no prefix":  # which transformers overlooks
        check(path, mine)
    begin, end = mine.hf.bos_token_id, mine.hf.eos_token_id
    assert mine.encode("the")[0] == begin
    assert mine.decode([begin, *mine.encode("the der 12"), end]).strip() == "the der 12"
    words = mine.hf.convert_ids_to_tokens(mine.encode("the")[1:])
    assert words == (["the"] if kind in ("no prefix", "gemma") else ["▁the"])
    prefix = ["▁"] if kind == "phi3" else []  # before every stretch of text
    words = mine.hf.convert_ids_to_tokens(mine.encode("x<turn>é"))
    assert words[-3 - len(prefix) :] == ["<turn>", *prefix, "<0xC3>", "<0xA9>"]


@pytest.mark.parametrize(("first", "last"), [(True, True), (False, False), (None, None)])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_what_stands_around_a_text(tmp_path: Path, kind: str, first: bool | None, last: bool | None) -> None:
    metadata = byte_vocabulary(300) if kind == "gpt2" else pieces()
    for name, value in (("bos", first), ("eos", last)):
        metadata.pop(f"tokenizer.ggml.add_{name}_token", None)
        if value is not None:
            metadata[f"tokenizer.ggml.add_{name}_token"] = value
    _, mine = read(tmp_path, metadata)
    ids = mine.encode("he")
    assert (ids[0] == mine.hf.bos_token_id) == (kind == "llama" if first is None else first)
    assert (ids[-1] == mine.hf.eos_token_id) == bool(last)


def test_templates(tmp_path: Path) -> None:
    metadata = {**byte_vocabulary(300), "tokenizer.chat_templates": ["tool_use"]}
    metadata["tokenizer.chat_template.tool_use"] = "{{ tools }}"
    _, mine = read(tmp_path, metadata)
    assert mine.hf.chat_template == {"default": metadata["tokenizer.chat_template"], "tool_use": "{{ tools }}"}


# ---------------------------------------------------------------------------------------------------------- real files


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["qwen-coder-0.5b", "qwen-coder-1.5b", "gemma-3-270m"])
def test_real_files(name: str) -> None:
    path = REAL / f"{name}.gguf"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    mine = Tokenizer.from_directory(path)
    assert mine is not None
    check(path, mine)
    if name.startswith("qwen"):
        for text in texts():
            assert mine.hf.decode(mine.hf.encode(text, add_special_tokens=False)) == text
        assert mine.has_chat_template
        prompt = mine.hf.decode(mine.apply_chat_template([{"role": "user", "content": "Hi"}]))
        assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
