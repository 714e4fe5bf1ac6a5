"""TokenTree: the trie, its masks and its cuts, against slow twins."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ouroboros.phrases.lookahead import LookaheadWindow
from ouroboros.phrases.pool import PhrasePool
from ouroboros.tree import Origin, TokenTree


def random_tree(seed: int, nodes: int) -> TokenTree:
    rng = random.Random(seed)
    tree = TokenTree(7)
    for _ in range(nodes):
        tree.add(rng.randrange(len(tree)), rng.randrange(6), Origin.DRAFT)
    return tree


@given(st.integers(0, 10**6), st.integers(0, 90), st.integers(0, 30))
def test_mask_is_the_ancestors(seed: int, nodes: int, start: int) -> None:
    tree = random_tree(seed, nodes)
    start = min(start, len(tree) - 1)
    mask = tree.ancestor_mask(start)
    assert mask.shape == (len(tree) - start, len(tree))
    for row in range(len(mask)):
        assert mask[row].nonzero()[0].tolist() == tree.path(row + start)
        assert tree.depths[row + start] == len(tree.path(row + start)) - 1


@given(st.integers(0, 10**6), st.integers(1, 60))
def test_equal_prefixes_are_one_node(seed: int, nodes: int) -> None:
    tree = random_tree(seed, nodes)
    prefixes = [tuple(tree.path_tokens(node)) for node in range(len(tree))]
    assert len(set(prefixes)) == len(tree)
    for node, prefix in enumerate(prefixes):
        assert tree.walk(prefix)[-1] == node


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 61))
def test_truncate_is_as_if_the_nodes_had_never_been(seed: int, nodes: int, length: int) -> None:
    tree, short = random_tree(seed, nodes), TokenTree(7)
    length = min(length, len(tree))
    for node in range(1, length):
        short.add(tree.parents[node], tree.tokens[node], tree.origins[node])
    tree.truncate(length)
    assert (tree.tokens, tree.parents, tree.depths) == (short.tokens, short.parents, short.depths)
    assert (tree.ancestor_mask() == short.ancestor_mask()).all()
    for node in range(len(tree)):
        assert list(tree.children(node)) == list(short.children(node))


@given(st.integers(0, 10**6), st.integers(1, 60))
def test_select_keeps_paths(seed: int, nodes: int) -> None:
    tree = random_tree(seed, nodes)
    rng = random.Random(seed)
    kept = {node for _ in range(5) for node in tree.path(rng.randrange(len(tree)))}
    chosen = tree.select(kept)
    assert {tuple(chosen.path_tokens(n)) for n in range(len(chosen))} == {
        tuple(tree.path_tokens(n)) for n in kept | {0}
    }


def test_select_needs_the_parents() -> None:
    tree = TokenTree(0)
    leaf = tree.extend(0, [1, 2], Origin.DRAFT)
    with pytest.raises(KeyError):
        tree.select([leaf])


def test_the_first_to_propose_is_the_origin() -> None:
    tree = TokenTree(0)
    first = tree.add(0, 5, Origin.VERIFIED)
    assert tree.add(0, 5, Origin.DRAFT) == first
    assert tree.origins[first] is Origin.VERIFIED
    assert [origin.label for origin in Origin] == ["bonus", "draft"] + ["phrase"] * (len(Origin) - 2)


def test_published_window_layout() -> None:
    """`[last token] + row 0 + … + row N-2` is a comb: a chain with a column below each of its nodes."""
    window = LookaheadWindow(columns=4, ngram=4, text=range(100))
    pool = PhrasePool()
    for _ in range(2):  # fills levels 1 and 2
        tree = TokenTree(0)
        window.update([1000 + len(tree) * 10 + i for i in range(len(window.hang(tree, 0)))], pool)
    tree = TokenTree(0)
    bottom = window.hang(tree, 0)
    assert [tree.depths[node] for node in bottom] == [3, 4, 5, 6]  # level 2, column i at position p + 2 + i
    chain = [
        node for node in range(1, len(tree)) if any(tree.depths[c] > tree.depths[node] for c in tree.children(node))
    ]
    assert len(tree) == 1 + 4 * 3
    assert len(pool) == 0  # a window that is not full yields no n-gram
    for column, node in enumerate(bottom):
        path = tree.path(node)[1:]
        assert len(path) == column + 1 + 2  # row 0 up to its column, then its own column
        assert set(path[: column + 1]) <= set(chain)


@given(st.integers(0, 10**6), st.integers(0, 60))
def test_chain_is_the_path_of_first_children(seed: int, nodes: int) -> None:
    tree = random_tree(seed, nodes)
    node, tokens = 0, [7]
    while below := [child for child in range(len(tree)) if tree.parents[child] == node]:
        node = below[0]
        tokens.append(tree.tokens[node])
    chain = tree.chain()
    assert chain.tokens == tokens
    assert chain.parents == [*range(-1, len(tokens) - 1)]
    assert len(chain.chain()) == len(chain)
