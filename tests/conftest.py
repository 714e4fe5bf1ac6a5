"""One thread a test process; small models in memory, made once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ouroboros.control.cost import Costs
from ouroboros.models.base import Work
from tests.pairs import Pair, embedded_pair, tiny_pair

torch.set_num_threads(1)

MEMORY_BOUND = ((1, 1, 0.020), (8, 1, 0.024), (64, 1, 0.100))  # rows, context, seconds


@pytest.fixture(scope="module", autouse=True)
def costs_without_a_clock(request: pytest.FixtureRequest) -> Iterator[None]:
    """The controller's costs are given and forwards take what was given, so that what is drafted does not depend on how
    busy the machine is. A module whose ``CLOCK`` is true is about the real ones."""
    if getattr(request.module, "CLOCK", False):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ouroboros.control.experience.begun", lambda *model: Costs.fitted(Work(), MEMORY_BOUND))
        patch.setattr("ouroboros.control.experience.Control.observe", lambda *told: None)
        patch.setattr("ouroboros.control.prices.Prices.learn_overhead", lambda *told: None)
        yield


@pytest.fixture(scope="session")
def tiny() -> Pair:
    """A random fp64 target of 40 tokens, a draft that resembles it, and an unrelated one."""
    return tiny_pair()


@pytest.fixture(scope="session")
def embedded() -> Pair:
    """The embedded pair in fp32, with an unrelated random draft of the same vocabulary."""
    return embedded_pair()
