"""The tokenizer: from text and messages to token ids, and back. Knows nothing of models or drafts."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ouroboros.errors import InputError, LoadError
from ouroboros.text.chat import ChatEncoder
from ouroboros.text.files import NAMES, read_tokenizer

__all__ = ["Tokenizer"]


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for those from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_letters()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


class Tokenizer:
    """A Hugging Face tokenizer behind the few calls that this library makes."""

    def __init__(self, hf_tokenizer: Any) -> None:
        self.hf = hf_tokenizer

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> Tokenizer | None:
        """The tokenizer whose files lie in ``path``, or None where there are none.

        Raises:
            LoadError: the path is no directory, the files are broken, or ask for Python code of their own.
        """
        directory = Path(path)
        if not directory.is_dir():
            raise LoadError(f"tokenizer must be a directory with tokenizer files, not {str(path)!r}")
        if not any((directory / name).is_file() for name in NAMES):
            return None
        try:
            return cls(read_tokenizer(directory))
        except LoadError as error:
            raise LoadError(f"cannot use the tokenizer in {str(path)!r}: {error}") from error
        except BaseException as error:  # every tokenizer class fails in a way of its own, Rust's panics in another
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise LoadError(f"cannot read the tokenizer in {str(path)!r} ({_one_line(error)})") from error
            raise

    @classmethod
    def wrap(cls, obj: object) -> Tokenizer:
        """``obj`` itself if it is a ``Tokenizer``, else around a transformers tokenizer or a directory's path.

        Raises:
            InputError: ``obj`` is none of these.
            LoadError: the directory has no tokenizer, or a broken one.
        """
        if isinstance(obj, Tokenizer):
            return obj
        if isinstance(obj, str | os.PathLike):
            found = cls.from_directory(obj)
            if found is None:
                raise LoadError(f"tokenizer must be a directory with tokenizer files; {str(obj)!r} has none")
            return found
        calls = ("encode", "decode", "get_vocab", "apply_chat_template")
        if not all(callable(getattr(obj, name, None)) for name in calls):
            kind = type(obj).__name__
            raise InputError(f"tokenizer must be a transformers tokenizer or a directory's path, not {kind}")
        return cls(obj)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, with the special tokens that the tokenizer adds by default.

        Raises:
            InputError: ``text`` holds half a surrogate pair, which no UTF-8 text can, or what the vocabulary lacks.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"a prompt must be valid Unicode text, not with {text[error.start]!r} in it") from None
        try:
            return [int(token) for token in self.hf.encode(text, verbose=False)]
        except Exception as error:  # a vocabulary of words without an unknown one, say
            raise InputError(f"the tokenizer cannot encode this text ({_one_line(error)})") from error

    @property
    def has_chat_template(self) -> bool:
        return bool(getattr(self.hf, "chat_template", None))

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        control_tokens: bool = False,
    ) -> list[int]:
        """Token ids of a conversation; the template adds its own special tokens.

        Args:
            messages: their contents are texts. tools: as the template takes them, mostly JSON schemas. arguments: what
                else the template is given, by name. add_generation_prompt: up to where the answer begins.
            continue_final_message: up to the end of the last message's text, which is to be gone on with.
            control_tokens: what reads like a control token in messages becomes it; else it is spelt out as text.

        Raises:
            InputError: the tokenizer has no chat template, the template refuses the messages, or does not know an
                argument.
        """
        if not self.has_chat_template:
            raise InputError("messages need a tokenizer with a chat template, and this one has none")
        settings: dict[str, Any] = dict(arguments or {})
        self.check_arguments([*settings, *(["tools"] if tools else [])])
        if tools:
            settings["tools"] = list(tools)
        settings["add_generation_prompt"] = add_generation_prompt and not continue_final_message
        settings["continue_final_message"] = continue_final_message
        try:
            ids = self._chat.encode(messages, control_tokens, settings, self._render)
        except InputError:
            raise
        except Exception as error:  # templates are programs; they raise what they like
            raise InputError(f"the chat template does not take these messages ({_one_line(error)})") from error
        return [int(token) for token in ids]

    def _render(self, messages: Sequence[Any], tokenize: bool = True, **settings: Any) -> Any:
        return self.hf.apply_chat_template(messages, tokenize=tokenize, return_dict=False, **settings)

    def check_arguments(self, names: Iterable[str]) -> None:
        """
        Raises:
            InputError: an argument that the template would not look at.
        """
        template = self.hf.chat_template
        text = template if isinstance(template, str) else "\n".join(map(str, dict(template).values()))
        for name in names:
            if not re.search(rf"\b{re.escape(name)}\b", text):
                raise InputError(f"the chat template takes no {name!r}: it would have no effect")

    @functools.cached_property
    def _chat(self) -> ChatEncoder:
        return ChatEncoder(self.hf)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; special tokens, and ids that the vocabulary does not have, leave no trace."""
        shown = [token for token in ids if not self.is_silent(token)]
        if not shown:
            return ""
        return str(self.hf.decode(shown, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def spelling(self, token_id: int) -> str:
        """What a token is by itself, a special one by its name; half a character is U+FFFD."""
        return str(self.hf.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def bytes_of(self, token_id: int) -> bytes:
        """A token's bytes; of a byte-level vocabulary also those of half a character."""
        text = self.spelling(token_id)
        if "\ufffd" in text:
            name = str(self.hf.convert_ids_to_tokens([token_id])[0] or "")
            if re.fullmatch("<0x[0-9A-Fa-f]{2}>", name):
                return bytes([int(name[3:5], 16)])
            if name and all(letter in _BYTES for letter in name):
                return bytes(_BYTES[letter] for letter in name)
        return text.encode("utf-8", "replace")

    def is_silent(self, token_id: int) -> bool:
        """Whether the token never shows in a text: it is special, or unknown to the vocabulary."""
        return token_id in self._special_ids or token_id not in self._known_ids

    def stop_ids(self, stops: Sequence[str]) -> frozenset[int]:
        """The special tokens among stop strings: they leave no trace in a text, and so are never found there.

        Raises:
            InputError: a stop string has a special token in it, and other text, which is never found either.
        """
        special = self._special_names
        for stop in stops:
            inside = next((name for name in special if name in stop), None) if stop not in special else None
            if inside is not None:
                raise InputError(
                    f"stop must hold the special token {inside!r} alone, not {stop!r}: the text shows nothing of it"
                )
        return frozenset(special[stop] for stop in stops if stop in special)

    @property
    def eos_token_id(self) -> int | None:
        found = self.hf.eos_token_id
        return None if found is None else int(found)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of what the ids mean: the vocabulary with its added tokens, sorted.

        Two tokenizers that split text differently, or differ in which ids they call special, share a fingerprint when
        each id stands for the same token: then drafts and phrases of one can be offered to the other.
        """
        pairs = json.dumps(sorted(self._vocab.items()), ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(pairs.encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """The largest id plus one; a model may have more rows than this."""
        return max(self._known_ids, default=-1) + 1

    @functools.cached_property
    def _vocab(self) -> dict[str, int]:
        return {str(token): int(index) for token, index in self.hf.get_vocab().items()}

    @functools.cached_property
    def _known_ids(self) -> frozenset[int]:
        return frozenset(self._vocab.values())

    @functools.cached_property
    def _special_ids(self) -> frozenset[int]:
        added = getattr(self.hf, "added_tokens_decoder", {})
        flagged = {int(index) for index, token in added.items() if getattr(token, "special", False)}
        return frozenset(flagged.union(int(index) for index in getattr(self.hf, "all_special_ids", ())))

    @functools.cached_property
    def _special_names(self) -> dict[str, int]:
        return {name: token for name, token in self._vocab.items() if token in self._special_ids and name.strip()}
