"""Recycled predictions: what is kept, what is guessed from it."""

from __future__ import annotations

import math
from array import array

import pytest
import torch

from ouroboros.config import SamplingParams
from ouroboros.control.estimates import Calibration, Evidence
from ouroboros.drafting.plan import Plan
from ouroboros.phrases.pool import Phrase
from ouroboros.phrases.predictions import Predictions
from ouroboros.sampling import Sampler, rows
from ouroboros.tree import Origin


def test_two_tokens_go_before_one_and_the_newest_counts() -> None:
    predictions = Predictions()
    predictions.learn(1, 2, [5, 6], [-0.1, -3.0])
    predictions.learn(3, 2, [7, 8], [-0.2, -2.0])
    near, far = predictions.look_up(1, 2), predictions.look_up(9, 2)
    assert near is not None
    assert near.near
    assert near.ids.tolist() == [5, 6]
    assert far is not None
    assert not far.near
    assert far.ids.tolist() == [7, 8]
    assert far.logs.tolist() == pytest.approx([-0.2, -2.0])
    assert predictions.look_up(1, 4) is None
    predictions.learn(None, 4, [1], [0.0])
    assert (found := predictions.look_up(1, 4)) is not None
    assert not found.near
    assert (found := predictions.look_up(None, 2)) is not None
    assert not found.near


def test_what_was_not_renewed_is_forgotten() -> None:
    predictions = Predictions(max_keys=3)
    for token in range(50):
        predictions.learn(0, 1, [token], [0.0])
        predictions.learn(token, token + 1, [token], [0.0])
        assert len(predictions) <= 6
    renewed = predictions.look_up(0, 1)
    assert renewed is not None
    assert renewed.ids.tolist() == [49]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_likeliest_is_the_top_of_the_softmax(dtype: torch.dtype) -> None:
    logits_RV = (torch.randn(5, 300, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    ids, logs = Sampler(SamplingParams(), 0, 300).likeliest(logits_RV, 16)
    best = logits_RV.double().log_softmax(-1).topk(16, dim=-1)
    assert [row[0] for row in ids] == best.indices[:, 0].tolist()
    assert torch.allclose(torch.tensor(logs, dtype=torch.float64), best.values, atol=1e-4)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_a_guess_from_a_whole_row_is_the_draw(
    temperature: float, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its number promises: the chance of the first guess is that of the perturbed scores."""
    if not compiled:
        monkeypatch.setattr(rows, "library", lambda: "not now")
    sampler = Sampler(SamplingParams(temperature=temperature), 7, 12)
    logits_RV = torch.randn(40, 12, generator=torch.Generator().manual_seed(2)) * 2
    drawn = sampler.draw(logits_RV, range(40), [[]] * 40)
    choices = sampler.choices(logits_RV, range(40), [[]] * 40, 3)
    ids, logs = sampler.likeliest(logits_RV, 12)
    for row in range(40):
        found = array("i", ids[row]), array("f", logs[row])
        tokens, probs = sampler.guess(*found, row, 3)
        assert tokens[0] == drawn[row]
        assert tokens == choices.tokens[row]
        assert probs == pytest.approx(choices.probs[row], abs=1e-4)


def test_guesses_hang_below_a_node_as_long_as_they_are_likely() -> None:
    plan = Plan(3, Calibration())
    plan.recycle(0, [4, 5, 6], [0.6, 0.3, 0.01], near=True, least=0.05)
    assert plan.tree.tokens == [3, 4, 5]
    assert set(plan.tree.origins[1:]) == {Origin.RECYCLED}
    assert plan.chances[1:] == pytest.approx([0.6, 0.3])
    calibration = Calibration()
    for _ in range(200):
        calibration.learn(Evidence.RECYCLED, 0.6, right=False)
    plan = Plan(3, calibration)
    plan.recycle(0, [4], [0.6], near=True, least=0.05)
    assert len(plan) == 1
    plan.recycle(0, [4], [0.6], near=False, least=0.05)
    assert len(plan) == 2
    assert math.isclose(plan.chances[1], 0.6)


def test_a_prediction_behind_two_tokens_overrules_phrases() -> None:
    """What both say has the prediction's evidence; what a phrase says alone is believed less, with all behind it."""

    def phrases(*lists: tuple[int, ...]) -> list[Phrase]:
        return [Phrase(tokens, Origin.VERIFIED, 4) for tokens in lists]

    plan = Plan(3, Calibration())
    plan.hang(0, phrases((4, 5), (6, 7)), 8, least=0.01)
    before = dict(zip(plan.tree.tokens, plan.chances, strict=True))
    plan.recycle(0, [6, 8], [0.5, 0.4], near=False, least=0.05)
    after = dict(zip(plan.tree.tokens, plan.chances, strict=True))
    assert all(after[token] == before[token] for token in before)
    assert after[8] == pytest.approx(1 - before[4] - before[6])  # no more than they leave
    plan.recycle(0, [6, 8], [0.5, 0.4], near=True, least=0.05)
    after = dict(zip(plan.tree.tokens, plan.chances, strict=True))
    assert after[6] == pytest.approx(0.5)
    assert after[7] == pytest.approx(before[7] / before[6] * 0.5)
    assert after[8] == pytest.approx(0.4)
    assert after[4] == pytest.approx(0.3 * before[4] * (1 - 0.5 - 0.4))
    assert after[5] == pytest.approx(after[4] * before[5] / before[4])
    plan.learn([9])
    assert plan._calibration.chance(Evidence.AGAINST, 0.19) < 0.19


def test_of_several_children_only_one_can_be_right() -> None:
    """A second phrase has what the first leaves, and is judged by texts in which the first was wrong."""
    calibration = Calibration()
    two = [Phrase((4, 5), Origin.VERIFIED, 8), Phrase((6,), Origin.VERIFIED, 8)]
    plan = Plan(3, calibration)
    plan.hang(0, two, 8, least=0.0)
    alone = two[0].rate
    chances = dict(zip(plan.tree.tokens, plan.chances, strict=True))
    assert chances[4] == pytest.approx(alone)
    assert chances[6] == pytest.approx(alone * (1 - alone))
    for _ in range(50):
        plan.learn([4, 5])  # says nothing of the second
    assert calibration.chance(Evidence.PHRASE_6, alone) > 0.9
    for _ in range(50):
        plan.learn([6])
    assert calibration.chance(Evidence.PHRASE_6, alone) < 0.75


def test_a_long_match_outweighs_a_prediction_after_two_tokens() -> None:
    plan = Plan(3, Calibration())
    plan.hang(0, [Phrase((4, 5), Origin.VERIFIED, 8)], 8, least=0.0)
    before = list(plan.chances)
    plan.recycle(0, [6], [0.9], near=True, least=0.01)
    assert plan.chances[:3] == before
    assert plan.chances[3] == pytest.approx(0.3 * 0.9 * (1 - before[1]))


def test_nothing_hangs_below_the_end_of_the_text() -> None:
    plan = Plan(3, Calibration(), stop_ids={4})
    plan.hang(0, [Phrase((5, 4, 6), Origin.VERIFIED, 8)], 8, least=0.0)
    assert plan.tree.tokens == [3, 5, 4]


def test_phrases_are_believed_by_the_length_of_their_match() -> None:
    calibration = Calibration()
    for key, right in ((1, False), (8, True)):
        for _ in range(50):
            plan = Plan(3, calibration)
            plan.hang(0, [Phrase((4, 5), Origin.VERIFIED, key)], 8, least=0.0)
            plan.learn([4, 5] if right else [9])
    assert calibration.chance(Evidence.PHRASE, 0.375) < 0.1
    assert calibration.chance(Evidence.PHRASE_6, 0.83) > 0.9
    assert calibration.chance(Evidence.PHRASE_9, 0.83) > 0.9
    assert calibration.chance(Evidence.PHRASE_3, 0.5) == 0.5  # not seen
