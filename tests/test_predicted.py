"""An expected text is drafted first, and changes no token."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ouroboros import Decoder, InputError, SamplingParams
from ouroboros.config import METHODS, options_for
from tests.pairs import Pair
from tests.reference import generate

PROMPT = [5, 9, 2, 7, 1, 3]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9, "top_p": 0.9}], ids=str)
def test_the_output_is_the_oracle_s(tiny: Pair, method: str, settings: dict[str, Any]) -> None:
    draft = tiny.drafts["similar"] if method in ("speculative", "ouroboros") else None
    decoder = Decoder(tiny.target, draft, None, method, options_for(method))
    params = SamplingParams(max_new_tokens=60, **settings)
    truth = generate(tiny.oracle, PROMPT, params, 4)
    source = random.Random(0)
    near = [source.randrange(40) if source.random() < 0.1 else token for token in truth]
    for prediction in (truth, near, near[10:] + near[:10], [7] * 50, [3, 1], []):
        result = decoder.generate(PROMPT, max_new_tokens=60, seed=4, prediction=prediction, **settings)
        assert result.token_ids == truth
        accepted = result.stats.accepted_by_origin.get("predicted", 0)
        if method == "autoregressive":
            assert accepted == 0
        elif prediction == truth:
            assert accepted >= 50
            assert result.stats.target_forwards <= 6


def test_what_is_refused() -> None:
    for wrong in (5, [-1], [1.5], {"a": 1}):
        with pytest.raises(InputError, match="prediction must be"):
            SamplingParams(prediction=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="method must be one of"):
        SamplingParams(method="magic")
