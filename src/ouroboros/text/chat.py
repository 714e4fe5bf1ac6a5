"""What people say in a chat stays text: control tokens in it are spelt out, the template's own stay control tokens.

Whoever can write ``<|im_end|>`` so that it becomes the token can end their message and begin another in any role. So a
mark is put inside each such name, after its first character, before the template is rendered. A marked name is no
token for the tokenizer, and a copy of it takes the marks away before it splits text into tokens: what is left is split
exactly as if the names meant nothing. The mark is a character that no text has (Unicode's noncharacters).
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ouroboros.errors import InputError

__all__ = ["ChatEncoder"]

MARKS = [chr(0xFDD0 + i) for i in range(32)]
TRUSTED = ("system", "developer", "assistant")  # may name tokens that are not special, such as <think>
COPIES = 4  # of a tokenizer that are kept: one, unless marks occur in texts


@dataclass(frozen=True, slots=True)
class _Names:
    """Texts of control tokens: ``special`` ones, and ``all`` with those that the vocabulary only calls added."""

    special: re.Pattern[str] | None
    all: re.Pattern[str] | None


class ChatEncoder:
    """Of one tokenizer of transformers."""

    def __init__(self, hf_tokenizer: Any) -> None:
        self._hf = hf_tokenizer
        self._copies: dict[tuple[str, frozenset[str]], Any] = {}
        self._lock = threading.Lock()

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        control_tokens: bool,
        settings: Mapping[str, Any],
        render: Callable[..., Any],
    ) -> list[int]:
        """Token ids of the rendered template.

        Args:
            control_tokens: names of control tokens in messages become these tokens. settings: what else the template is
                given, as transformers names it. render: the template, as token ids, with ``tokenize=False`` as text.

        Raises:
            InputError: this tokenizer cannot spell out a name.
        """
        found: set[str] = set()
        mark: str | None = None
        given: tuple[Any, Any] = messages, settings
        if not control_tokens:
            mark = next((mark for mark in MARKS if not _holds((messages, settings), mark)), None)
            if mark is None:
                raise InputError("messages hold every noncharacter of Unicode; one must be left to mark others with")
            given = self._marked(messages, settings, mark, found)
        if not found:
            ids: list[int] = render([dict(message) for message in messages], **settings)
            return ids
        assert mark is not None
        text: str = render(given[0], tokenize=False, **given[1])
        text = text.replace(f"\\u{ord(mark):04x}", mark)  # a template's JSON may be ASCII
        return list(self._copy(mark, frozenset(found)).encode(text, add_special_tokens=False).ids)

    def _marked(
        self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], mark: str, found: set[str]
    ) -> tuple[list[Any], dict[str, Any]]:
        names = self._names
        marked = []
        for message in messages:
            trusted = message.get("role") in TRUSTED
            marked.append(_map(message, names.special if trusted else names.all, mark, found))
        # Descriptions of tools and documents come from anywhere; other settings are the program's own.
        others = {
            name: _map(settings[name], names.special, mark, found)
            for name in ("tools", "documents")
            if name in settings
        }
        return marked, {**settings, **others}

    @functools.cached_property
    def _names(self) -> _Names:
        added = [token for token in getattr(self._hf, "added_tokens_decoder", {}).values() if str(token).strip()]
        special = {str(token) for token in added if getattr(token, "special", False)}
        special |= {str(token) for token in getattr(self._hf, "all_special_tokens", ()) if str(token).strip()}
        return _Names(_pattern(special), _pattern(special | {str(token) for token in added}))

    def _copy(self, mark: str, found: frozenset[str]) -> Any:
        """A tokenizer that takes the mark away once it has split text at control tokens."""
        backend = getattr(self._hf, "backend_tokenizer", None)
        single = next((name for name in found if len(name) == 1), None)
        if backend is None or single is not None:
            name = single or min(found)
            raise InputError(
                f"a message holds the control token {name!r}, and this tokenizer cannot spell it out as text; "
                "with control_tokens=True it is read as that token"
            )
        with self._lock:
            # Names that are looked for in normalised text would be found again when the mark is gone.
            late = frozenset(str(t) for t in self._hf.added_tokens_decoder.values() if t.normalized) & found
            if (mark, late) not in self._copies:
                while len(self._copies) >= COPIES:
                    del self._copies[next(iter(self._copies))]
                self._copies[mark, late] = _unmarking(backend.to_str(), mark, late)
            return self._copies[mark, late]


def _unmarking(source: str, mark: str, late: Collection[str]) -> Any:
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import normalizers

    if late:
        values = json.loads(source)
        for token in values["added_tokens"]:
            token["normalized"] = token["normalized"] and token["content"] not in late
        source = json.dumps(values)
    copy = RustTokenizer.from_str(source)
    copy.no_truncation()
    copy.no_padding()
    unmark = normalizers.Replace(mark, "")
    normalizer = copy.normalizer
    copy.normalizer = unmark if normalizer is None else normalizers.Sequence([unmark, normalizer])
    return copy


def _pattern(names: Collection[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None


def _map(value: Any, names: re.Pattern[str] | None, mark: str, found: set[str]) -> Any:
    """A copy with marks inside all names, in keys as well; ``found`` gets the names."""
    if isinstance(value, str):
        while names is not None and (seen := names.findall(value)):  # what is left of a name may be a shorter one
            found.update(seen)
            if any(len(name) == 1 for name in seen):
                break
            value = names.sub(lambda match: f"{match[0][0]}{mark}{match[0][1:]}", value)
        return value
    if isinstance(value, Mapping):
        return {_map(key, names, mark, found): _map(one, names, mark, found) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_map(one, names, mark, found) for one in value]
    return value


def _holds(value: Any, mark: str) -> bool:
    if isinstance(value, Mapping):
        return any(_holds(key, mark) or _holds(one, mark) for key, one in value.items())
    if isinstance(value, list | tuple):
        return any(_holds(one, mark) for one in value)
    return isinstance(value, str) and mark in value
