"""Which token a row of logits yields at a position: histories, penalties, warping, noise, draws. Knows no models."""

from ouroboros.sampling.choices import Choices, choices
from ouroboros.sampling.histories import Histories
from ouroboros.sampling.noise import gumbel_noise
from ouroboros.sampling.sampler import Sampler

__all__ = ["Choices", "Histories", "Sampler", "choices", "gumbel_noise"]
