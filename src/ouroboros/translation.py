"""Two tokenizers that differ: which tokens of one are which tokens of the other, and whether that is of use.

A token stands for bytes. Byte-level and sentencepiece-like vocabularies can both be read so; whether one has been read
aright is tried on a probe text. A token that the other vocabulary lacks is spelt with the longest tokens that it has.
Knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from ouroboros.errors import LoadError
from ouroboros.text import Tokenizer

__all__ = ["MIN_COVERAGE", "PROBE", "Lexicon", "Translation", "translate"]

MIN_COVERAGE = 0.75  # measured: see docs/models.md
PROBE = """\
The quick brown fox jumps over the lazy dog. In 1984, about 3.14 % of 65,536 readers didn't agree; "why?", they asked.
Large language models answer questions, write programs and translate between languages. The capital of France is Paris.
def fibonacci(n: int) -> list[int]:
    \"\"\"Return the first n Fibonacci numbers.\"\"\"
    result, a, b = [], 0, 1
    for _ in range(n):
        result.append(a)
        a, b = b, a + b
    return result

class Node:
    def __init__(self, value, children=None):
        self.value = value
        self.children = children or []

| name | value |\n|---|---|\n| x | 0x7f |
Übung macht den Meister. L'été dernier, nous étions à la plage. Привет, мир! 你好，世界。 🙂
"""


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies write bytes (Radford et al. 2019)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_ALPHABET = _byte_alphabet()
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_level(token: str) -> bytes | None:
    return bytes(_ALPHABET[c] for c in token) if all(c in _ALPHABET for c in token) else None


def _sentencepiece(token: str) -> bytes | None:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


class Lexicon:
    """A tokenizer's tokens as bytes.

    Attributes:
        texts: token id → bytes, of tokens that show in a text. names: of the others (special tokens) → id.
        ids: bytes → id; of several ids one that is no byte-fallback token. prefix: special ids that begin its texts.

    Raises:
        LoadError: the tokens do not spell the texts that they stand for.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        hf = tokenizer.hf
        self.vocab: Mapping[str, int] = {str(token): int(index) for token, index in hf.get_vocab().items()}
        self.names = {token: i for token, i in self.vocab.items() if tokenizer.is_silent(i)}
        added = {int(i) for i in getattr(hf, "added_tokens_decoder", {})}
        self.probe: list[int] = hf.encode(PROBE, add_special_tokens=False, verbose=False)
        for read in (_byte_level, _sentencepiece):
            self.texts = self._read(read, added)
            if b"".join(self.texts.get(i, b"") for i in self.probe).removeprefix(b" ") == PROBE.encode():
                break
        else:
            raise LoadError("do not spell a text byte by byte")
        pieces = sorted(self.vocab.items(), key=lambda item: (_BYTE.fullmatch(item[0]) is None, -item[1]))
        self.ids = {self.texts[i]: i for _, i in pieces if self.texts.get(i)}
        self._longest = max(map(len, self.ids))
        self.eos, self.bos, unknown = tokenizer.eos_token_id, hf.bos_token_id, hf.unk_token_id
        self._stopgap = next((i for i in (unknown, self.eos) if i is not None), 0)
        begun = hf.encode("a", verbose=False)
        self.prefix = tuple(begun[:1]) if begun[0] == self.bos else ()

    def _read(self, read: Callable[[str], bytes | None], added: Set[int]) -> dict[int, bytes]:
        texts = {}
        for token, i in self.vocab.items():
            if token not in self.names:
                text = token.encode() if i in added else read(token)
                if text is not None:
                    texts[i] = text
        return texts

    def spell(self, text: bytes) -> tuple[int, ...]:
        """The longest tokens in turn, at least one token; a byte without a token is the unknown token."""
        ids = []
        place = 0
        while place < len(text):
            size = next(
                (n for n in range(min(self._longest, len(text) - place), 1, -1) if text[place : place + n] in self.ids),
                1,
            )
            ids.append(self.ids.get(text[place : place + size], self._stopgap))
            place += size
        return tuple(ids) or (self._stopgap,)


@dataclass(frozen=True, slots=True)
class Translation:
    """Tables for models.translated.

    Attributes:
        spellings: for each target token its draft tokens. partners: the draft token that is the same, or -1.
        prefix: draft tokens that begin every text.
        coverage: share of a probe text's target tokens that have a partner.
    """

    spellings: list[tuple[int, ...]]
    partners: list[int]
    prefix: tuple[int, ...]
    coverage: float


def translate(
    target: Tokenizer,
    draft: Tokenizer,
    vocab_size: int,
    eos: Set[int],
    draft_eos: Set[int] = frozenset(),
    least: float = MIN_COVERAGE,
) -> Translation:
    """Joins two vocabularies: special tokens by name or else by role, the others by their bytes.

    Args:
        vocab_size: of the target model. eos, draft_eos: the ids at which the models end a text. least: coverage.

    Raises:
        LoadError: a tokenizer whose tokens are no bytes, or too few tokens in common.
    """
    source, into = _lexicon(target, "target"), _lexicon(draft, "draft")
    partners = [-1] * vocab_size
    taken: set[int] = set()

    def join(token: int | None, partner: int | None) -> None:
        if token is None or partner is None or partner in taken or not 0 <= token < vocab_size:
            return
        if partners[token] < 0:
            partners[token] = partner
            taken.add(partner)

    end = min(eos, default=None) if source.eos is None else source.eos
    names = {token: name for name, token in source.names.items()}
    last = min(draft_eos, default=None) if into.eos is None else into.eos
    roles = ((end, last), (source.bos, into.bos))
    for token, partner in roles:
        if token is not None and names.get(token) not in into.names:
            join(token, partner)
    for name, token in source.names.items():
        join(token, into.names.get(name))
    for token, partner in roles:
        join(token, partner)
    for text, token in source.ids.items():
        join(token, into.ids.get(text))
    for name, token in source.vocab.items():  # several tokens of one text: those of one name
        partner = into.vocab.get(name)
        if partner is not None and source.texts.get(token, b"") == into.texts.get(partner):
            join(token, partner)

    stand_in = dict.fromkeys(eos, last) | {source.bos: last if into.bos is None else into.bos}
    spellings = []
    for token, partner in enumerate(partners):
        known = partner if partner >= 0 else stand_in.get(token)
        text = source.texts.get(token, names.get(token, "").encode())
        spellings.append(into.spell(text) if known is None else (known,))
    coverage = sum(token < vocab_size and partners[token] >= 0 for token in source.probe) / len(source.probe)
    if coverage < least:
        share = f"{coverage:.0%} of a probe text's tokens are tokens of both"
        raise LoadError(f"only {share}; to be of use as a draft it takes {least:.0%}")
    return Translation(spellings, partners, into.prefix, coverage)


def _lexicon(tokenizer: Tokenizer, owner: str) -> Lexicon:
    try:
        return Lexicon(tokenizer)
    except LoadError as error:
        raise LoadError(f"the {owner}'s tokens {error}") from None
