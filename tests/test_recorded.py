"""Replay: a method on a recorded target does, step by step, what it does on the target itself."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from ouroboros.config import METHODS, SamplingParams, options_for
from ouroboros.drafting.factory import NEEDS_DRAFT
from ouroboros.generate import Decoder
from ouroboros.models.base import CausalModel, ScoreRequest
from ouroboros.models.context import Context
from ouroboros.models.recorded import RecordedModel, Recording
from ouroboros.phrases.memory import Memory
from ouroboros.tree import Origin, TokenTree
from tests.pairs import Pair

COUNTS = ("new_tokens", "target_forwards", "draft_forwards", "draft_tokens", "accepted_by_origin", "accepted_by_depth")
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.9, "seed": 4},
    "penalised": {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.2, "seed": 5},
}
PROMPTS = [random.Random(n).choices(range(7), k=6 + n) for n in range(3)]
READ_THE_PATH_ALONE = ("autoregressive", "speculative", "prompt_lookup", "suffix_decoding")


def run(model: CausalModel, pair: Pair, method: str, settings: dict[str, Any], **options: Any) -> list[Any]:
    """Outputs and counts of a few prompts through one memory, so that later ones depend on all rows of earlier ones."""
    draft = pair.drafts["similar"] if method in NEEDS_DRAFT else None
    if method == "ouroboros":
        options = {"control": False, **options}  # what it drafts must not hang on times
    decoder = Decoder(model, draft, None, method, options_for(method, options), Memory())
    params = SamplingParams(max_new_tokens=24, **settings)
    results = [decoder.generate(prompt, params) for prompt in PROMPTS]
    return [(one.token_ids, [getattr(one.stats, name) for name in COUNTS]) for one in results]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("method", METHODS)
def test_counts_are_those_of_the_target(tiny: Pair, method: str, settings: str) -> None:
    """With harvesting on: rows of rejected tokens count as much as others."""
    replayed = RecordedModel(tiny.target)
    run(replayed, tiny, "autoregressive", SETTINGS[settings])
    assert replayed.forwards == len(PROMPTS) * 24
    expected = run(tiny.target, tiny, method, SETTINGS[settings])
    assert run(replayed, tiny, method, SETTINGS[settings]) == expected
    before = replayed.forwards
    assert run(replayed, tiny, method, SETTINGS[settings]) == expected
    assert replayed.forwards == before, "what was answered once is not asked again"


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("method", READ_THE_PATH_ALONE)
def test_without_the_target(tiny: Pair, method: str, settings: str) -> None:
    recording = Recording()
    run(RecordedModel(tiny.target, recording), tiny, "autoregressive", SETTINGS[settings])
    replayed = RecordedModel(tiny.target, recording, ask=False)
    assert run(replayed, tiny, method, SETTINGS[settings]) == run(tiny.target, tiny, method, SETTINGS[settings])
    assert replayed.forwards == 0


@pytest.mark.parametrize("settings", SETTINGS)
def test_ouroboros_without_harvest_needs_no_target(tiny: Pair, settings: str) -> None:
    recording = Recording()
    run(RecordedModel(tiny.target, recording), tiny, "autoregressive", SETTINGS[settings])
    replayed = RecordedModel(tiny.target, recording, ask=False)
    found = run(replayed, tiny, "ouroboros", SETTINGS[settings], harvest=False)
    assert found == run(tiny.target, tiny, "ouroboros", SETTINGS[settings], harvest=False)
    assert found != run(tiny.target, tiny, "ouroboros", SETTINGS[settings]), "harvesting must matter here"


def test_a_recorded_draft_model_too(tiny: Pair) -> None:
    """Trees that grow from forward to forward, wanted rows, caught-up tokens, dropped nodes."""
    expected = run(tiny.target, tiny, "ouroboros", {}, window=3, candidates=2)
    draft = RecordedModel(tiny.drafts["similar"])
    pair = Pair(tiny.target, tiny.oracle, {"similar": draft})
    for _ in range(2):
        assert run(tiny.target, pair, "ouroboros", {}, window=3, candidates=2) == expected
    assert draft.scored[0][0] > 1


def test_rows_are_the_models_own(tiny: Pair) -> None:
    tree = TokenTree(3)
    chain = tree.extend(0, [5, 6], Origin.DRAFT)
    tree.add(0, 9, Origin.DRAFT)
    text = list(range(40)) * 2 + [3]
    real = Context(tiny.target)
    real.prefill(text)
    expected = tiny.target.score([ScoreRequest(real.slot, tree)])[0]
    model = RecordedModel(tiny.target)
    context = Context(model)
    context.prefill(text)
    some = model.score([ScoreRequest(context.slot, tree, rows=[chain])])[0]
    assert torch.allclose(some, expected[[chain]], atol=1e-12)
    assert model.recording.rows == 1
    context.follow(text)
    assert torch.allclose(model.score([ScoreRequest(context.slot, tree)])[0], expected, atol=1e-12)
    assert (model.forwards, model.recording.rows) == (2, 4)
    assert model.scored == [(4, 80), (4, 80)]


def test_options_that_the_recording_serves(tiny: Pair) -> None:
    """A search: each setting on the same recording does what it does on the target."""
    model = RecordedModel(tiny.target)
    for gamma in (1, 3, 6):
        options = {"draft_tokens": gamma, "tree_tokens": 2 * gamma}
        assert run(model, tiny, "ouroboros", {}, **options) == run(tiny.target, tiny, "ouroboros", {}, **options)
