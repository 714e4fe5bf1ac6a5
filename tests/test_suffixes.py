"""The memory of the training-free rivals: counted continuations, recycled successors."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from ouroboros.config import SuffixDecodingOptions, TokenRecyclingOptions
from ouroboros.drafting.suffix_decoding import SuffixDecodingDrafter
from ouroboros.drafting.token_recycling import RANKS, TokenRecyclingDrafter, template
from ouroboros.phrases.suffixes import END, SuffixIndex
from ouroboros.tree import Origin, TokenTree
from ouroboros.verify import Verdict
from tests.flows import drive


def speculate(index: SuffixIndex, context: Sequence[int], **settings: float) -> tuple[TokenTree, float, int]:
    values: dict[str, float] = {"depth": 24, "factor": 1, "most": 64, "min_chance": 0.0, "room": 64} | settings
    found = index.speculate(context, origin=Origin.VERIFIED, **values)  # type: ignore[arg-type]
    return (TokenTree(context[-1]), 0.0, 0) if found is None else (found.tree, found.score, found.match)


def add(index: SuffixIndex, tokens: Sequence[int]) -> None:
    """A text that is over."""
    text = index.start()
    text.add(tokens)
    text.stop()


def brute_chances(texts: Sequence[Sequence[int]], match: Sequence[int], below: Sequence[int]) -> float:
    """The chance of a path behind a match: products of shares of occurrences, counted from all substrings."""
    grams: Counter[tuple[int, ...]] = Counter()
    for text in texts:
        for start in range(len(text)):
            for end in range(start + 1, len(text) + 1):
                grams[tuple(text[start:end])] += 1
    chance = 1.0
    context = tuple(match)
    for depth, token in enumerate(below):
        # the first level's share is of all occurrences of the match, also of those at the end of a text
        chance *= grams[(*context, token)] / grams[context]
        assert depth >= 0
        context = (*context, token)
    return chance


def test_chances_are_shares_of_occurrences() -> None:
    generator = random.Random(3)
    texts = [[generator.randrange(4) for _ in range(40)] for _ in range(3)]
    index = SuffixIndex()
    for text in texts:
        add(index, text)
    for _ in range(30):
        context = [generator.randrange(4) for _ in range(6)]
        tree, score, match = speculate(index, context, factor=8)
        assert match >= 1
        matched = context[-match:]
        chances = [brute_chances(texts, matched, tree.path_tokens(node)) for node in range(1, len(tree))]
        assert score == pytest.approx(sum(chances))
        assert chances == sorted(chances, reverse=True)
        assert len(tree) - 1 <= 8 * match


def test_the_surer_match_drafts_more() -> None:
    index = SuffixIndex()
    text = index.start()
    text.add([1, 2, 3, 4, 5, 6, 7, 8])
    assert speculate(index, [9, 3])[0].tokens == [3, 4]
    assert speculate(index, [9, 2, 3])[0].tokens == [3, 4, 5]
    assert speculate(index, [1, 2, 3])[0].tokens == [3, 4, 5, 6]
    assert speculate(index, [1, 2, 3], factor=2)[0].tokens == [3, 4, 5, 6, 7, 8]
    assert speculate(index, [1, 2, 3], depth=1)[0].tokens == [3, 4]
    assert speculate(index, [1, 2, 3], room=2)[0].tokens == [3, 4, 5]
    assert speculate(index, [1, 2, 3], room=0)[0].tokens == [3]
    assert speculate(index, [1, 2, 3], most=1)[0].tokens == [3, 4]
    assert speculate(index, [8])[2] == 0, "nothing stands behind the end"
    text.stop()
    add(index, [8, 9])
    assert speculate(index, [7, 8])[0].tokens == [8, 9]
    assert END not in speculate(index, [6, 7], factor=9)[0].tokens


def test_unlikely_nodes_are_left_out() -> None:
    index = SuffixIndex()
    for last in (2, 2, 2, 3):
        add(index, [1, last])
    assert speculate(index, [1], factor=5)[0].tokens == [1, 2, 3]
    assert speculate(index, [1], factor=5, min_chance=0.3)[0].tokens == [1, 2]


def test_old_texts_are_forgotten() -> None:
    index = SuffixIndex(max_tokens=10)
    add(index, [1, 2, 3, 4, 5, 6])
    add(index, [7, 8, 9, 10, 11])
    assert len(index) == 5
    assert speculate(index, [1])[2] == 0
    assert speculate(index, [8])[0].tokens == [8, 9]
    assert index.tokens == [7, 8, 9, 10, 11, END]


def test_texts_that_are_written_at_once_do_not_mix() -> None:
    index = SuffixIndex()
    one, other = index.start(), index.start()
    for token in range(1, 6):
        one.add([token])
        other.add([token + 10])
    assert index.tokens == [1, 2, 3, 4, 5, END, 11, 12, 13, 14, 15, END]
    assert speculate(index, [2, 3], factor=4)[0].tokens == [3, 4, 5]
    one.stop()
    other.stop()
    index.start().stop()
    again = SuffixIndex()
    again.restore(index.tokens)
    assert again.tokens == index.tokens


def test_earlier_outputs_are_drawn_upon_and_this_one_is_added() -> None:
    outputs = SuffixIndex()
    add(outputs, [5, 6, 7, 8])
    drafter = SuffixDecodingDrafter(SuffixDecodingOptions(), outputs, [1, 5, 6])
    assert drive(drafter.propose([1, 5, 6], 9)).tokens == [6, 7, 8]
    # two tokens matched in the own text, one outside
    assert drive(drafter.propose([1, 5, 6, 2, 1, 5], 9)).tokens == [5, 6, 2]
    drafter.stop([1, 5, 6, 2, 1, 5, 4])
    assert outputs.tokens == [5, 6, 7, 8, END, 2, 1, 5, 4, END]
    alone = SuffixDecodingDrafter(SuffixDecodingOptions(reuse=False), outputs, [5, 6])
    assert len(drive(alone.propose([5, 6], 9))) == 1


def test_the_template_takes_the_likeliest_nodes() -> None:
    shape = template(20, 3)
    chances = [1.0]
    for parent, rank in shape:
        chances.append(chances[parent] * RANKS[rank])
        assert rank < 3
    assert len(set(shape)) == 20
    assert chances[1:] == sorted(chances[1:], reverse=True)


def test_successors_come_from_every_row_and_the_accepted_one_counts() -> None:
    successors: dict[int, tuple[int, ...]] = {}
    drafter = TokenRecyclingDrafter(TokenRecyclingOptions(tree_tokens=6, successors=2), successors)
    assert len(drive(drafter.propose([4], 9))) == 1
    tree = TokenTree(4)
    tree.extend(0, [5, 6], Origin.RECYCLED)
    other = tree.add(0, 6, Origin.RECYCLED)
    logits = torch.tensor(
        [[0, 0, 0, 0, 0, 2.0, 1.0], [9, 8, 0, 0, 0, 0, 0], [0, 0, 3, 2, 0, 0, 0], [0, 0, 0, 7, 8.0, 0, 0]]
    )
    drafter.observe(Verdict(tree, (0, 1, 2), (5, 6, 2), (), (5, 0, 2, 4), logits))
    assert other == 3
    assert successors == {4: (5, 6), 5: (0, 1), 6: (2, 3)}
    drafted = drive(drafter.propose([1, 4], 2))
    assert {tuple(drafted.path_tokens(node)) for node in range(1, len(drafted))} == {(5,), (6,), (5, 0), (5, 1), (6, 2)}
