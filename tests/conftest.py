"""One thread a test process; small models in memory, made once."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch

from ouroboros.control.controller import Control
from ouroboros.control.cost import CostProfile
from tests.pairs import Pair, embedded_pair, tiny_pair

torch.set_num_threads(1)

MEMORY_BOUND = CostProfile("", "", (1, 8, 64), (1,), ((0.020, 0.024, 0.100),), ((0.0, 0.0, 0.0),))


@pytest.fixture(scope="module", autouse=True)
def costs_without_a_clock(request: pytest.FixtureRequest) -> Iterator[None]:
    """The controller's costs are given and forwards take what was given, so that what is drafted does not depend on how
    busy the machine is. A module whose ``CLOCK`` is true is about the real ones."""
    if getattr(request.module, "CLOCK", False):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ouroboros.control.known.load_profile", lambda path: MEMORY_BOUND)
        patch.setattr("ouroboros.control.controller._towards", lambda value, observed, most: value)
        for module in ("pairing", "integrations.generate"):
            patch.setattr(f"ouroboros.{module}.Control", functools.partial(Control, clock=lambda: 0.0))
        yield


@pytest.fixture(scope="session")
def tiny() -> Pair:
    """A random fp64 target of 40 tokens, a draft that resembles it, and an unrelated one."""
    return tiny_pair()


@pytest.fixture(scope="session")
def embedded() -> Pair:
    """The embedded pair in fp32, with an unrelated random draft of the same vocabulary."""
    return embedded_pair()
