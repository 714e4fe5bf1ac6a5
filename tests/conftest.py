"""One thread a test process; small models in memory, made once."""

from __future__ import annotations

import pytest
import torch

from tests.pairs import Pair, embedded_pair, tiny_pair

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Pair:
    """A random fp64 target of 40 tokens, a draft that resembles it, and an unrelated one."""
    return tiny_pair()


@pytest.fixture(scope="session")
def embedded() -> Pair:
    """The embedded pair in fp32, with an unrelated random draft of the same vocabulary."""
    return embedded_pair()
