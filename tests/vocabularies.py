"""Copies of the embedded draft in other vocabularies, as directories: its rows in another order, or fewer of them."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.pairs import EMBEDDED

DRAFT = EMBEDDED / "draft"


def embedded_tokenizer() -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((DRAFT / "tokenizer.json").read_text())
    return settings


def with_rows(path: Path, rows: list[int], eos: str = "<|endoftext|>") -> Path:
    """The draft with these of its tokens, in this order; without the merges that lead to others; EOS renamed."""
    shutil.copytree(DRAFT, path)
    settings = embedded_tokenizer()
    new = {old: place for place, old in enumerate(rows)}
    model = settings["model"]
    model["vocab"] = {t: new[i] for t, i in model["vocab"].items() if i in new and i != 0} | {eos: new[0]}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    settings["added_tokens"][0] |= {"id": new[0], "content": eos}
    (path / "tokenizer.json").write_text(json.dumps(settings))
    names = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(names | {"eos_token": eos, "bos_token": eos}))
    config = json.loads((path / "config.json").read_text())
    ends = {"eos_token_id": new[0], "bos_token_id": new[0]}
    (path / "config.json").write_text(json.dumps(config | ends | {"vocab_size": len(rows)}))
    (path / "generation_config.json").write_text(json.dumps(ends))
    weights = load_file(path / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][rows].contiguous()
    save_file(weights, path / "model.safetensors")
    return path


def renumbered(path: Path) -> Path:
    rows = list(range(8192))
    random.Random(5).shuffle(rows)
    return with_rows(path, rows, "<end>")


def fewer_merges(path: Path, size: int) -> Path:
    return with_rows(path, list(range(size)))
