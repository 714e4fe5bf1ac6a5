"""Several requests in one padded forward of a transformers model: each is answered as alone."""

from __future__ import annotations

import random

import pytest

import ouroboros
from ouroboros.models.base import ScoreRequest
from ouroboros.tree import Origin, TokenTree
from tests.test_transformers_adapter import adapter, check_rows, module, similar
from tests.zoo import ADAPTED, TREES, VOCAB

TOGETHER = "one padded forward for several requests"


def test_which_take_several() -> None:
    taking = {name for name in ADAPTED if adapter(name).info.engine == TOGETHER}
    assert taking <= set(TREES), "masks that pad are masks of trees"
    assert {"llama", "gpt2", "gemma3", "llama4"} <= taking
    assert {adapter(name).info.engine for name in set(ADAPTED) - taking} <= {"several requests in turn"}


@pytest.mark.parametrize("name", TREES)
def test_trees_of_several_sequences(name: str) -> None:
    chance, model = random.Random(name), adapter(name)
    slots, texts = (
        [model.open() for _ in range(4)],
        [[chance.randrange(VOCAB) for _ in range(n)] for n in (1, 4, 9, 20)],
    )
    for slot, text in zip(slots, texts, strict=True):
        if len(text) > 4:
            model.prefill(slot, text[:-4])  # the rest is caught up with
    for _ in range(3):
        requests, expected = [], []
        for slot, text in zip(slots, texts, strict=True):
            tree = TokenTree(text[-1])
            for _ in range(chance.randrange(6)):
                tree.add(chance.randrange(len(tree)), chance.randrange(VOCAB), Origin.DRAFT)
            rows = sorted(chance.sample(range(len(tree)), chance.randrange(1, len(tree) + 1)))
            requests.append(ScoreRequest(slot, tree, rows, text[slot.length : -1]))
            expected.append([[*text, *tree.path_tokens(row)] for row in rows])
        for found, wanted in zip(model.score(requests), expected, strict=True):
            check_rows(name, found, wanted)
        for request, text in zip(requests, texts, strict=True):
            path = request.tree.path(len(request.tree) - 1)
            request.slot.commit(path)
            text += [request.tree.tokens[node] for node in path[1:]]
            text.append(chance.randrange(VOCAB))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_copy_of_rows_is_as_good(name: str) -> None:
    model, text = adapter(name), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    slot = model.open()
    model.prefill(slot, text)
    copy = slot.fork(6)
    assert (copy.length, slot.length) == (6, 10)
    check_rows(name, model.score([ScoreRequest(copy, TokenTree(7))])[0], [[*text[:6], 7]])
    check_rows(name, model.score([ScoreRequest(slot, TokenTree(8))])[0], [[*text, 8]])


def test_a_list_is_decoded_as_each_of_it() -> None:
    with ouroboros.load(module("llama"), similar("llama"), backend="transformers") as decoder:
        prompts = [[1, 2, 3], [9, 8], [5] * 11]
        together = decoder.generate(prompts, max_new_tokens=24, temperature=0.7, seed=3)
        alone = [decoder.generate(prompt, max_new_tokens=24, temperature=0.7, seed=3) for prompt in prompts]
        assert [result.token_ids for result in together] == [result.token_ids for result in alone]
