"""Whether rounding can explain a draw: could logits that are off by at most a bound have yielded this token?

Independent of ``Sampler`` where it matters: filters and the comparison are worked out here, on all tokens, in fp64.
The noise g(seed, position, token) is the same for all methods, so the question is one of margins. With ``slack`` the
most by which a warped score may be off, a token is explained if

1. top-k, top-p and min-p keep it, or it is so near their edges that they might, and
2. no token that is surely kept leads it by more than 2 × slack: both may be off, in opposite directions.

So scores that are compared with each other count as equal within 2 × slack, and the odds between two sets of tokens,
for top-p, are known to a factor of e**(2 × slack).

Tensor names: V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ouroboros.config import SamplingParams
from ouroboros.sampling import Sampler, gumbel_noise

__all__ = ["Choice", "Nearness", "judge"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A token that was drawn, as the reference logits see it.

    Attributes:
        gap: by how much its score (warped logit plus noise) falls short of the best score that is kept; negative for a
            token that would have won, had it been kept. edges: its distance to each filter's edge, negative if beyond:
            of warped logits for ``top_k`` and ``min_p``, of probability for ``top_p``. explained: by rounding.
    """

    token: int
    gap: float
    edges: Mapping[str, float]
    explained: bool


@dataclass(frozen=True, slots=True)
class Nearness:
    """``margin``: between the two best scores that are kept (infinite where one is); ``slack``: see above."""

    margin: float
    slack: float
    choices: tuple[Choice, ...]


@dataclass(slots=True)
class _Kept:
    """bool [V] each: by the reference, under every rounding, under some rounding; and signed distances to edges."""

    reference: Tensor
    surely: Tensor
    maybe: Tensor
    edges: dict[str, Tensor]

    def cut(self, name: str, edges_V: Tensor, reference: Tensor, surely: Tensor, maybe: Tensor) -> None:
        self.edges[name] = edges_V
        self.reference = self.reference & reference
        self.surely = self.surely & surely
        self.maybe = self.maybe & maybe


def judge(
    logits_V: Tensor,
    params: SamplingParams,
    seed: int,
    history: Sequence[int],
    prompt_length: int,
    tokens: Sequence[int],
    bound: float,
    epsilon: float = 2.0**-23,
) -> Nearness:
    """How near the draws ``tokens`` are to that of the reference.

    Args:
        logits_V: the reference. history: all tokens before the draw; prompt_length: of these the prompt's.
        bound: the most by which a logit may be off. epsilon: of the type that scores are computed in.
    """
    raw = Sampler(dataclasses.replace(params, temperature=0.0), seed, logits_V.shape[0], prompt_length)
    scores_V = raw.perturbed(logits_V.double().cpu()[None], [len(history)], [history])[0].clone()
    stretch = max(params.repetition_penalty, 1 / params.repetition_penalty) / (params.temperature or 1.0)
    slack = bound * stretch
    every_V = torch.ones_like(scores_V, dtype=torch.bool)
    kept = _Kept(every_V, every_V, every_V, {})
    drawn_V = scores_V
    if not params.greedy:
        scores_V = scores_V / params.temperature
        noise_V = gumbel_noise(seed, torch.tensor(len(history)), torch.arange(len(scores_V)))
        largest = float(scores_V[scores_V.isfinite()].abs().max()) if scores_V.isfinite().any() else 0.0
        slack += 4 * epsilon * (largest + float(noise_V.abs().max()))  # the scores are themselves rounded
        drawn_V = scores_V + noise_V
        _filter(kept, scores_V, params, slack, epsilon)
    best = _best(drawn_V, kept.reference)
    top_2 = drawn_V.masked_fill(~kept.reference, -math.inf).topk(min(2, len(drawn_V))).values
    margin = float(top_2[0] - top_2[1]) if len(top_2) == 2 else math.inf
    choices = []
    for token in tokens:
        rivals_V = kept.surely.clone()
        rivals_V[token] = False
        lead = _best(drawn_V, rivals_V) - float(drawn_V[token])
        edges = {name: float(edges_V[token]) for name, edges_V in kept.edges.items()}
        explained = bool(kept.maybe[token]) and lead <= 2 * slack
        choices.append(Choice(token, best - float(drawn_V[token]), edges, explained))
    return Nearness(margin, slack, tuple(choices))


def _best(drawn_V: Tensor, among_V: Tensor) -> float:
    return float(drawn_V[among_V].max()) if among_V.any() else -math.inf


def _filter(kept: _Kept, scores_V: Tensor, params: SamplingParams, slack: float, epsilon: float) -> None:
    """Top-k, top-p and min-p, in this order, each on what the ones before may have left."""
    size = len(scores_V)
    if 0 < params.top_k < size:
        order = scores_V.sort(descending=True, stable=True)
        inside_V = torch.zeros_like(kept.reference)
        inside_V[order.indices[: params.top_k]] = True
        last, next_ = order.values[params.top_k - 1], order.values[params.top_k]
        edges_V = torch.where(inside_V, scores_V - next_, scores_V - last)
        kept.cut("top_k", edges_V, inside_V, edges_V > 2 * slack, edges_V >= -2 * slack)
    if params.top_p < 1:
        weights_V = (scores_V - scores_V.max()).exp()
        order = torch.where(kept.reference, weights_V, 0.0).sort(descending=True, stable=True)
        before_V = torch.empty_like(scores_V)
        before_V[order.indices] = (order.values.cumsum(0) - order.values) / order.values.sum()
        low_V, high_V = _mass_before(kept, scores_V, weights_V, slack)
        off = epsilon * math.sqrt(size)  # of the sampler's sums over the vocabulary
        edges_V = params.top_p - before_V
        kept.cut("top_p", edges_V, edges_V > 0, high_V < params.top_p - off, low_V < params.top_p + off)
    if params.min_p:
        edges_V = scores_V - (scores_V.max() + math.log(params.min_p))
        kept.cut("min_p", edges_V, edges_V >= 0, edges_V > 2 * slack, edges_V >= -2 * slack)


def _mass_before(kept: _Kept, scores_V: Tensor, weights_V: Tensor, slack: float) -> tuple[Tensor, Tensor]:
    """Bounds of the probability of the tokens that go before each: those above it that are surely kept, against all
    that may be; and those that may be above it, against what is surely kept and below."""
    order = scores_V.sort(descending=True)
    surely = torch.cat((torch.zeros(1, dtype=weights_V.dtype), _sums(kept.surely, weights_V, order.indices)))
    maybe = torch.cat((torch.zeros(1, dtype=weights_V.dtype), _sums(kept.maybe, weights_V, order.indices)))
    above = torch.searchsorted(-order.values, -(scores_V + 2 * slack), right=False)  # scores > score + 2 slack
    around = torch.searchsorted(-order.values, -(scores_V - 2 * slack), right=True)  # scores >= score - 2 slack
    sure_V = surely[above]
    rest_V = maybe[-1] - sure_V
    low_V = _share(sure_V, rest_V, -slack)
    own_V = torch.where(kept.maybe, weights_V, 0.0)
    may_V = (maybe[around] - own_V).clamp(min=0)
    below_V = surely[-1] - surely[around] + weights_V
    return low_V, _share(may_V, below_V, slack)


def _sums(mask_V: Tensor, weights_V: Tensor, order_V: Tensor) -> Tensor:
    return torch.where(mask_V, weights_V, 0.0)[order_V].cumsum(0)


def _share(part_V: Tensor, rest_V: Tensor, shift: float) -> Tensor:
    """part / (part + rest), where logits of the part have moved by ``shift`` and those of the rest against it."""
    return part_V / (part_V + rest_V.clamp(min=0) * math.exp(min(700.0, -2 * shift))).clamp(min=1e-300)
