"""A tokenizer read from files: by transformers' own classes alone, never by code that lies beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ouroboros.errors import LoadError
from ouroboros.files import check_directory, read_json
from ouroboros.models.gguf_file import GGUFFile
from ouroboros.text.gguf_tokenizer import build_tokenizer, chat_template, special_tokens

__all__ = ["NAMES", "read_tokenizer"]

NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "tiktoken.model",
)
PROBE = "a \u0378 \U0010fffd"  # letters that hardly a vocabulary has: those without bytes need an unknown token


def read_tokenizer(path: Path) -> Any:
    """A transformers tokenizer, from a directory or a GGUF file.

    Raises:
        LoadError: it asks for Python code of its own, or cannot encode every text.
        Exception: whatever transformers makes of broken files.
    """
    found = _of_gguf(path) if path.is_file() else _of_directory(path)
    try:
        found.encode(PROBE)
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise LoadError(f"it cannot encode every text ({reason}): it needs bytes or an unknown token") from error
    return found


def _of_gguf(path: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    metadata = GGUFFile(path).metadata
    return PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(metadata),
        clean_up_tokenization_spaces=False,
        chat_template=chat_template(metadata),
        **special_tokens(metadata),
    )


def _of_directory(directory: Path) -> Any:
    check_directory(directory)
    settings = read_json(directory / "tokenizer_config.json") or {}
    model = read_json(directory / "config.json") or {}
    for file, found in (("tokenizer_config.json", settings), ("config.json", model)):
        names = found.get("auto_map")
        code = names.get("AutoTokenizer") if isinstance(names, dict) else names if found is settings else None
        if code is not None:
            raise LoadError(
                f"{file} asks for Python code of the checkpoint's own (auto_map: {code!r:.80}), which is never run: "
                "give tokenizer= another one"
            )
    return _read(directory, settings, model)


def _read(directory: Path, settings: dict[str, object], model: dict[str, object]) -> Any:
    if _is_generic(directory, settings, model):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)


def _is_generic(directory: Path, settings: dict[str, object], model: dict[str, object]) -> bool:
    """Whether ``AutoTokenizer`` would end at the generic class: asking it costs more than a second of imports.

    Only claimed for the llama family: for some others transformers knows the declared class to be wrong.
    """
    generic = settings.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
    return generic and (directory / "tokenizer.json").is_file() and model.get("model_type") == "llama"
