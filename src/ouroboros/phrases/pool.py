"""PhrasePool: short runs of tokens, found by the last 1, 2, 4, 8 or 16 tokens before them.

Bounded in keys and in phrases per key. Under one key no phrase is a prefix of another, so nothing is stored or offered
twice. Phrases are ranked by the tokens that they are expected to yield: a prior by origin and key length, overruled by
their own success as they are offered. Keys are forgotten oldest first, those that were of use last time round get a
second chance (CLOCK). Not thread-safe. Source: Ouroboros, sections 3.2-3.4; ranking, keys and trie are our own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from ouroboros.errors import InputError
from ouroboros.tree import Origin, TokenTree

__all__ = ["Found", "Held", "Phrase", "PhrasePool"]

KEYS = (1, 2, 4, 8, 16)  # tokens that a phrase is found by
MAX_KEY = KEYS[-1]
# Expected accepted tokens of a phrase never offered before, for each of these: what the embedded pair showed on
# HumanEval at temperature 1, rounded (docs/LOG.md).
PRIORS = {
    Origin.VERIFIED: dict(zip(KEYS, (0.6, 1.1, 2.0, 5.0, 8.0), strict=True)),
    Origin.PROMPT: dict(zip(KEYS, (0.4, 0.7, 1.5, 4.0, 7.0), strict=True)),
    Origin.CORRECTED: dict(zip(KEYS, (0.25, 0.4, 0.9, 1.3, 1.5), strict=True)),
    Origin.WINDOW: dict(zip(KEYS, (0.2, 0.25, 0.3, 0.3, 0.3), strict=True)),
}
PRIOR_WEIGHT = 2.0  # offers that the prior counts for
TRUST = {origin: rank for rank, origin in enumerate(reversed(PRIORS))}


class Phrase:
    """One phrase under one key.

    Attributes:
        key_length: tokens of the key, of KEYS. seen: times it was inserted. offered, accepted: offers that were
            decided, and tokens that proved right in them. expected: tokens that it should yield when it is offered.
    """

    __slots__ = ("accepted", "expected", "key_length", "offered", "origin", "seen", "tokens")

    def __init__(self, tokens: tuple[int, ...], origin: Origin, key_length: int) -> None:
        self.tokens = tokens
        self.key_length = key_length
        self.note(origin, 1, 0, 0)

    def note(self, origin: Origin, seen: int, offered: int, accepted: int) -> None:
        """What is known of it now."""
        self.origin, self.seen, self.offered, self.accepted = origin, seen, offered, accepted
        prior = PRIOR_WEIGHT * PRIORS[origin][self.key_length]
        if seen > 1:
            prior *= 1 + 0.25 * math.log2(seen)
        self.expected = (accepted + prior) / (offered + PRIOR_WEIGHT)

    def let_go(self) -> None:
        """It is no longer in a pool: who holds it by the identity of its tokens shall not take it for one that is."""
        self.tokens = (*self.tokens,)

    @property
    def rate(self) -> float:
        """The chance per token, 0 … 1, if acceptance is geometric: expected = rate / (1 - rate)."""
        return self.expected / (1 + self.expected)


_expected = attrgetter("expected")
# Tokens that were put in, and for each key the phrase that has this very tuple; None where it is part of a longer one.
Held = tuple[tuple[int, ...], list[Phrase | None]]


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether one of two phrases begins with the other."""
    size = min(len(one), len(other))
    return one[:size] == other[:size]


class _Bucket:
    __slots__ = ("phrases", "useful")

    def __init__(self) -> None:
        self.phrases: list[Phrase] = []
        self.useful = False


@dataclass(frozen=True, slots=True)
class Found:
    """What a look-up returns: the phrases, best first, of which ``length`` tokens were asked for behind ``root``."""

    root: int
    length: int
    phrases: tuple[Phrase, ...]

    @property
    def tree(self) -> TokenTree:
        """The trie that the phrases form below the root."""
        tree = TokenTree(self.root)
        for phrase in self.phrases:
            tree.extend(0, phrase.tokens[: self.length], phrase.origin)
        return tree


class PhrasePool:
    """See the header.

    Args:
        max_keys: bound of the number of keys. phrases_per_key: bound of the phrases of one key.
        max_tokens: longer phrases are cut to this many tokens. below: a pool that is read and never changed: its
            phrases are offered beside its own, and one that was offered is its own from then on.
    """

    def __init__(
        self,
        max_keys: int = 300_000,
        phrases_per_key: int = 8,
        max_tokens: int = 10,
        below: PhrasePool | None = None,
    ) -> None:
        self.max_keys = max_keys
        self.below = below
        self.phrases_per_key = phrases_per_key
        self.max_tokens = max_tokens
        self._buckets: dict[tuple[int, ...], _Bucket] = {}
        self._count = 0
        self._vocabulary: str | None = None
        self._checked: int | None = None  # every token's id is below it, as far as anyone has asked

    def __len__(self) -> int:
        """Phrases in the pool; one that is known under several keys counts once for each."""
        return self._count

    @property
    def keys(self) -> int:
        return len(self._buckets)

    def items(self) -> Iterator[tuple[tuple[int, ...], Phrase]]:
        """Every (key, phrase), oldest keys first."""
        for key, bucket in self._buckets.items():
            for phrase in bucket.phrases:
                yield key, phrase

    def check(self, vocab_size: int, vocabulary: str | None = None) -> None:
        """Binds the pool to a vocabulary: its first user's.

        Args:
            vocab_size: every token's id must be below it. vocabulary: what tells it from others, where that is known.

        Raises:
            InputError: the pool holds another token, or belongs to another vocabulary.
        """
        if vocabulary is not None:
            if self._vocabulary not in (None, vocabulary):
                raise InputError("the PhrasePool belongs to another vocabulary than the target model's")
            self._vocabulary = vocabulary
        if self._checked is None or self._checked > vocab_size:
            for key, phrase in self.items():
                largest = max((*key, *phrase.tokens))
                if largest >= vocab_size:
                    raise InputError(f"the PhrasePool holds the token id {largest}; allowed are 0 to {vocab_size - 1}")
        self._checked = max(self._checked or 0, vocab_size)

    def insert(
        self,
        context: Sequence[int],
        tokens: Sequence[int],
        origin: Origin,
        again: bool = False,
        held: Held | None = None,
    ) -> Held:
        """Learns that ``tokens`` followed ``context``, under the last tokens of it.

        Args:
            again: this occurrence was counted before, and is now known further. held: what its last call returned.

        Returns:
            What holds them now, so that a later call for this occurrence need not look for it.
        """
        phrase = tuple(tokens[: self.max_tokens])
        before, phrases = held or (None, [])
        found: list[Phrase | None] = []
        for place, length in enumerate(KEYS if phrase else ()):
            if length > len(context):
                break
            known = phrases[place] if place < len(phrases) else None
            if known is not None and known.tokens is before:
                known.tokens = phrase
                found.append(known)
            else:
                found.append(self._insert(tuple(context[-length:]), phrase, origin, 0 if again else 1))
        return phrase, found

    def _insert(self, key: tuple[int, ...], tokens: tuple[int, ...], origin: Origin, count: int) -> Phrase | None:
        """Returns the phrase that has now these very tokens; None where it is a longer one, or none was kept."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket()
        phrases = bucket.phrases
        size = len(tokens)
        holder: Phrase | None = None
        for phrase in phrases:
            known = phrase.tokens
            if known[:size] == tokens or tokens[: len(known)] == known:  # one begins with the other: keep the longer
                if size > len(known):
                    phrase.tokens, holder = tokens, phrase
                best = origin if TRUST[origin] > TRUST[phrase.origin] else phrase.origin
                phrase.note(best, phrase.seen + count, phrase.offered, phrase.accepted)
                break
        else:
            if len(phrases) >= self.phrases_per_key:
                worst = min(phrases, key=_expected)
                if PRIORS[origin][len(key)] < worst.expected:
                    return None
                phrases.remove(worst)
                worst.let_go()
                self._count -= 1
            holder = Phrase(tokens, origin, len(key))
            phrases.append(holder)
            self._count += 1
        if len(self._buckets) > self.max_keys:
            self._forget()
        return holder

    def _forget(self) -> None:
        while True:
            key = next(iter(self._buckets))
            bucket = self._buckets.pop(key)
            if not bucket.useful:
                self._count -= len(bucket.phrases)
                for phrase in bucket.phrases:
                    phrase.let_go()
                return
            bucket.useful = False
            self._buckets[key] = bucket

    def lookup(self, context: Sequence[int], branches: int, length: int) -> Found:
        """Up to ``branches`` phrases of up to ``length`` tokens that may follow ``context`` (not empty).

        Longer matches and better phrases come first; a phrase with which another one begins is left out.
        """
        candidates: list[Phrase] = []
        if branches > 0:
            for size in reversed(KEYS):
                bucket = self._buckets.get(tuple(context[-size:])) if size <= len(context) else None
                if bucket is not None:
                    candidates += bucket.phrases
                if self.below is not None and size <= len(context):
                    candidates += self._shared(tuple(context[-size:]), bucket)
        candidates.sort(key=_expected, reverse=True)  # stable: of equals the longer match stays first
        chosen: list[Phrase] = []
        starts: list[tuple[int, ...]] = []
        for phrase in candidates:
            tokens = phrase.tokens[:length]
            if not any(start[: len(tokens)] == tokens for start in starts):
                chosen.append(phrase)
                starts.append(tokens)
                if len(chosen) == branches:
                    break
        return Found(context[-1], length, tuple(chosen))

    def _shared(self, key: tuple[int, ...], own: _Bucket | None) -> list[Phrase]:
        """Copies of what the pools below have under this key and this one has not; of each the uppermost."""
        known = [] if own is None else list(own.phrases)
        found: list[Phrase] = []
        below = self.below
        while below is not None:
            bucket = below._buckets.get(key)
            for phrase in bucket.phrases if bucket is not None else ():
                tokens = phrase.tokens
                if not any(_alike(tokens, other.tokens) for other in known):
                    copy = Phrase(tokens[: self.max_tokens], phrase.origin, phrase.key_length)
                    copy.note(phrase.origin, phrase.seen, phrase.offered, phrase.accepted)
                    found.append(copy)
            known += found
            below = below.below
        return found

    def credit(self, context: Sequence[int], found: Found, text: Sequence[int]) -> None:
        """Tells the phrases of a look-up what really followed ``context`` (at least one token)."""
        for phrase in found.phrases:
            matched = 0
            for token, real in zip(phrase.tokens, text, strict=False):
                if token != real:
                    break
                matched += 1
            phrase.note(phrase.origin, phrase.seen, phrase.offered + 1, phrase.accepted + matched)
            if self.below is not None:
                self._adopt(tuple(context[-phrase.key_length :]), phrase)
            if matched:
                bucket = self._buckets.get(tuple(context[-phrase.key_length :]))
                if bucket is not None:
                    bucket.useful = True

    def _adopt(self, key: tuple[int, ...], phrase: Phrase) -> None:
        """What was offered from below is kept with what became of it."""
        bucket = self._buckets.get(key)
        if bucket is None or not any(_alike(phrase.tokens, known.tokens) for known in bucket.phrases):
            self.restore(key, phrase)

    def absorb(self, other: PhrasePool) -> None:
        """Learns all that another pool knows; counts of the same phrase are added."""
        for key, phrase in other.items():
            bucket = self._buckets.get(key)
            known = next((p for p in bucket.phrases if p.tokens == phrase.tokens), None) if bucket else None
            if known is None:
                self.restore(key, phrase)
                continue
            best = phrase.origin if TRUST[phrase.origin] > TRUST[known.origin] else known.origin
            counts = known.seen + phrase.seen, known.offered + phrase.offered, known.accepted + phrase.accepted
            known.note(best, *counts)

    def restore(self, key: tuple[int, ...], phrase: Phrase) -> None:
        """Puts a stored phrase back under its key, of a length in KEYS; bounds hold as for ``insert``."""
        self._insert(key, phrase.tokens[: self.max_tokens], phrase.origin, phrase.seen)
        bucket = self._buckets.get(key)
        for known in bucket.phrases if bucket is not None else ():
            if known.tokens == phrase.tokens:
                known.note(known.origin, phrase.seen, phrase.offered, phrase.accepted)
