"""From text to token ids and back: tokenizer, incremental detokeniser, stop strings. Knows nothing of models or drafts.

Invariants: for a byte-level vocabulary the pieces of a stream, joined, are ``decode`` of all its ids; a character is
given out once it is whole and never taken back; no character at or behind the beginning of a stop string is given out.

Nothing here imports transformers before a tokenizer is read from a directory: the command line must start quickly.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ouroboros.errors import InputError, LoadError

__all__ = ["IncrementalDetokenizer", "StopStrings", "TextStream", "Tokenizer"]

_TOKENIZER_FILES = (
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
_CONTEXT_TOKENS = 6  # prompt tokens that tell a sentencepiece decoder that the output is no beginning of a text
_WINDOW_TOKENS = 12  # a longer window without a whole character at its end holds bytes that never become one
_REPLACEMENT = "\ufffd"


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
            LoadError: the path is no directory, or the files are broken.
        """
        directory = Path(path)
        if not directory.is_dir():
            raise LoadError(f"tokenizer must be a directory with tokenizer files, not {str(path)!r}")
        if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
            return None
        try:
            return cls(_read(directory))
        except Exception as error:  # every tokenizer class fails in a way of its own
            raise LoadError(f"cannot read the tokenizer in {str(path)!r} ({_one_line(error)})") from error

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
            InputError: ``text`` holds half a surrogate pair, which no UTF-8 text can.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"a prompt must be valid Unicode text, not with {text[error.start]!r} in it") from None
        return [int(token) for token in self.hf.encode(text, verbose=False)]

    @property
    def has_chat_template(self) -> bool:
        return bool(getattr(self.hf, "chat_template", None))

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation up to where the answer begins; the template adds its own special tokens.

        Raises:
            InputError: the tokenizer has no chat template, or the template refuses the messages.
        """
        if not self.has_chat_template:
            raise InputError("messages need a tokenizer with a chat template, and this one has none")
        try:
            ids = self.hf.apply_chat_template(
                [dict(message) for message in messages], tokenize=True, add_generation_prompt=True, return_dict=False
            )
        except Exception as error:  # templates are programs; they raise what they like
            raise InputError(f"the chat template does not take these messages ({_one_line(error)})") from error
        return [int(token) for token in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; special tokens, and ids that the vocabulary does not have, leave no trace."""
        shown = [token for token in ids if not self.is_silent(token)]
        if not shown:
            return ""
        return str(self.hf.decode(shown, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def is_silent(self, token_id: int) -> bool:
        """Whether the token never shows in a text: it is special, or unknown to the vocabulary."""
        return token_id in self._special_ids or token_id not in self._known_ids

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


def _read(directory: Path) -> Any:
    if _is_generic(directory):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(directory), local_files_only=True)


def _is_generic(directory: Path) -> bool:
    """Whether ``AutoTokenizer`` would end at the generic class: asking it costs more than a second of imports.

    Only claimed for the llama family: for some others transformers knows the declared class to be wrong.
    """
    if not (directory / "tokenizer.json").is_file() or not (directory / "tokenizer_config.json").is_file():
        return False
    settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    model = directory / "config.json"
    family = json.loads(model.read_text(encoding="utf-8")).get("model_type") if model.is_file() else None
    generic = settings.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
    return generic and "auto_map" not in settings and family == "llama"


class IncrementalDetokenizer:
    """Turns a stream of token ids into a stream of text, in constant time a token.

    It decodes a short window: tokens whose text is out already, as context for decoders that strip the space at the
    beginning of a text, then the tokens since. U+FFFD at the end may be the beginning of a character (byte-fallback
    decoders show a whole run of bytes so until its last character is complete), so it waits for more tokens or for
    ``flush``. A special token in the prompt begins a new text: the context does not reach beyond it, and it never
    ends inside a character.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        context = list(prompt_ids[-_CONTEXT_TOKENS:])
        for place in range(len(context) - 1, -1, -1):
            if tokenizer.is_silent(context[place]):
                context = context[place + 1 :]
                break
        while (text := tokenizer.decode(context)).endswith(_REPLACEMENT):
            context = context[1:]
        self._window = context
        self._context = len(context)  # tokens at the beginning of the window whose text is out
        self._shown = len(text)  # characters of the window's text that are out

    def push(self, token_id: int) -> str:
        """The text that is whole now that ``token_id`` has come; often of this token, sometimes none."""
        if self._tokenizer.is_silent(token_id):
            return ""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        ready = len(text.rstrip(_REPLACEMENT))
        piece = text[self._shown : ready]
        self._shown = max(self._shown, ready)
        if ready == len(text) and (piece or len(self._window) > _WINDOW_TOKENS):
            self._window = self._window[self._context :]
            self._context = len(self._window)
            self._shown = len(self._tokenizer.decode(self._window))
        elif len(self._window) > _WINDOW_TOKENS:
            piece += self._cut(text)
        return piece

    def flush(self) -> str:
        """What was held back, as it stands; to be called once, at the end."""
        text = self._tokenizer.decode(self._window)
        piece = text[self._shown :]
        self._shown = max(self._shown, len(text))
        return piece

    def _cut(self, text: str) -> str:
        """Shorten a window of bytes that never become a character, and give out what lies before the cut.

        Where the two parts decode to the whole, the first does not end inside a character that the second goes on
        with. A character has four bytes at most, so that one of the last four token boundaries is such a place.
        """
        for place in range(len(self._window) - 1, len(self._window) - 5, -1):
            head = self._tokenizer.decode(self._window[:place])
            tail = self._tokenizer.decode(self._window[place:])
            if tail and head + tail == text:
                piece = text[self._shown : len(head)]
                self._window = self._window[place:]
                self._context = 0
                self._shown = max(0, self._shown - len(head))
                return piece
        return ""


class StopStrings:
    """Finds where the earliest stop string begins in a text that comes in pieces, and lets nothing behind it out."""

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string would end every text"
        self._stops = tuple(stops)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that can be shown for sure, and whether a stop string is complete; after that push no more."""
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = min((_open_end(text, stop) for stop in self._stops), default=len(text))
        self._held = text[keep:]
        return text[:keep], False

    def flush(self) -> str:
        """What was held back, when the text ends without a stop string."""
        text, self._held = self._held, ""
        return text


def _open_end(text: str, stop: str) -> int:
    """Where the longest end of ``text`` begins that is a beginning of ``stop``, else the length of ``text``."""
    place = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while place >= 0:
        if stop.startswith(text[place:]):
            return place
        place = text.find(stop[0], place + 1)
    return len(text)


class TextStream:
    """Token ids in, showable text out, until a stop string is complete. Without a tokenizer every text is empty."""

    def __init__(self, tokenizer: Tokenizer | None, prompt_ids: Sequence[int], stops: Sequence[str]) -> None:
        assert tokenizer is not None or not stops, "stop strings need a tokenizer; the caller refuses them"
        self._detokenizer = None if tokenizer is None else IncrementalDetokenizer(tokenizer, prompt_ids)
        self._stops = StopStrings(stops)
        self._stopped = False

    def push(self, token_id: int) -> tuple[str, bool]:
        """The text that this token lets out, and whether it completes a stop string."""
        assert not self._stopped, "a token behind the stop string"
        if self._detokenizer is None:
            return "", False
        text, self._stopped = self._stops.push(self._detokenizer.push(token_id))
        return text, self._stopped

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self._stopped

    def finish(self) -> str:
        """What was held back, to be called once, at the end; empty behind a stop string."""
        if self._detokenizer is None or self._stopped:
            return ""
        text, self._stopped = self._stops.push(self._detokenizer.flush())
        return text if self._stopped else text + self._stops.flush()
