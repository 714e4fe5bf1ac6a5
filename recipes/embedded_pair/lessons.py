"""Lessons: a prompt and its answer as tokens, and how they are mixed.

Prompt and answer are encoded apart, as they are when a model goes on with a prompt: encoded together, a byte-level
tokenizer joins the line's end with the indentation behind it, and no prompt ends as those that were trained on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from ouroboros.training.examples import Example
from recipes.embedded_pair.functions import Function, self_contained

LARGEST_PROMPT, LARGEST = 220, 400  # tokens; a longer prompt is learned from, but nothing is written for it
HELD_OUT = 25  # one in so many of the plain lessons is set aside
PLAIN_TIMES, OTHER_SHARE, SCHOOL_SHARE = 4, 0.15, 0.1  # of each kind in an epoch


@dataclass(frozen=True)
class Lesson:
    """``kind``: ``plain`` (a function that can be told from its head), ``other`` code, or ``school`` mathematics."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    kind: str

    @property
    def example(self) -> Example:
        """All of it is learned."""
        return Example((*self.prompt, *self.answer))

    @property
    def answered(self) -> Example:
        """The answer is learned."""
        return Example((*self.prompt, *self.answer), len(self.prompt))


def lessons_of(tokenizer: Tokenizer, functions: Sequence[Function], school: Sequence[str]) -> list[Lesson]:
    """Lessons of functions, and of texts that have an ``Answer:``."""
    found = []
    for one in functions:
        kind = "plain" if self_contained(one.text) else "other"
        found.append(_lesson(tokenizer, one.head, one.body, kind))
    for text in school:
        place = text.index("Answer:") + len("Answer:")
        found.append(_lesson(tokenizer, text[:place], text[place:], "school"))
    return [one for one in found if len(one.prompt) + len(one.answer) <= LARGEST]


def _lesson(tokenizer: Tokenizer, prompt: str, answer: str, kind: str) -> Lesson:
    return Lesson(tuple(tokenizer.encode(prompt).ids), (*tokenizer.encode(answer).ids, 0), kind)


@dataclass(frozen=True)
class Lessons:
    """``plain``, ``other``, ``school``: to train on. ``held_out``: plain ones that nothing is trained on."""

    plain: list[Lesson]
    other: list[Lesson]
    school: list[Lesson]
    held_out: list[Lesson]

    @staticmethod
    def split(lessons: Sequence[Lesson]) -> Lessons:
        kinds = [[one for one in lessons if one.kind == kind] for kind in ("plain", "other", "school")]
        aside = max(1, len(kinds[0]) // HELD_OUT)
        return Lessons(kinds[0][aside:], kinds[1], kinds[2], kinds[0][:aside])

    def epochs(self, count: int, seed: int) -> list[Example]:
        """So many epochs, plain ones several times in each and a new part of the others."""
        rng = random.Random(seed)
        found: list[Lesson] = []
        for _ in range(count):
            found += self.plain * PLAIN_TIMES
            for some, share in ((self.other, OTHER_SHARE), (self.school, SCHOOL_SHARE)):
                found += rng.sample(some, k=round(share * len(some)))
        return [one.example for one in found]

    def prompts(self, count: int, seed: int) -> list[Lesson]:
        """Lessons to write answers for: half of them plain, a tenth mathematics."""
        rng = random.Random(seed)
        found: list[Lesson] = []
        for some, share in ((self.plain, 0.5), (self.other, 0.4), (self.school, 0.1)):
            short = [one for one in some if len(one.prompt) <= LARGEST_PROMPT]
            wanted = round(share * count)
            found += (
                rng.sample(short, k=wanted) if wanted <= len(short) else rng.choices(short, k=wanted if short else 0)
            )
        return found
