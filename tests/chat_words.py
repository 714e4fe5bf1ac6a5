"""A tokenizer with control tokens of a chat, made of the embedded one; with normalised ones; of words alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ouroboros
from ouroboros.text import Tokenizer

EMBEDDED = Path(ouroboros.__file__).parent / "embedded" / "target"
CONTROL = ("<|im_start|>", "<|im_end|>", "<s>")
ADDED = ("<think>", "</think>")  # added to the vocabulary, not special
CHATML = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def chatml(template: str = CHATML, normalized: bool = False, prepend: bool = False) -> Tokenizer:
    """``normalized``: names are looked for in normalised text; ``prepend``: each stretch of text begins with a letter,
    as sentencepiece puts ▁ there."""
    from tokenizers import AddedToken, normalizers
    from transformers import PreTrainedTokenizerFast

    hf: Any = PreTrainedTokenizerFast.from_pretrained(EMBEDDED)
    hf.add_special_tokens(
        {"additional_special_tokens": [AddedToken(name, special=True, normalized=normalized) for name in CONTROL]}
    )
    hf.add_tokens([AddedToken(name, special=False, normalized=normalized) for name in ADDED])
    if prepend:
        hf.backend_tokenizer.normalizer = normalizers.Prepend("Z")
    hf.chat_template = template
    return Tokenizer.wrap(hf)


def write(tokenizer: Tokenizer, path: Path, **settings: object) -> Path:
    """Saves it, with more settings in its configuration."""
    tokenizer.hf.save_pretrained(path)
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return path
