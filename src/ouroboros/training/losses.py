"""How far a draft's distribution is from its target's, row by row. It knows nothing of models, data or optimisers.

With p the target's and q the draft's distribution of the next token:
    forward_kl  Σ p log(p / q)    the draft covers what the target may say (Hinton et al. 2015)
    reverse_kl  Σ q log(q / p)    the draft says what the target may say, and nothing else
    tv          ½ Σ |p − q|       1 − the best acceptance rate there is (Leviathan et al. 2023, DistillSpec 2024)
    noise       the chance that both draw different tokens from the noise that they share (see ``shared_noise``)
    text        −log q(token)     of the text alone; no p

Under noise that draft and target share, as this library draws, a draft token is accepted with a chance between
(1 − tv) / (1 + tv) and 1 − tv (Daliri, Musco & Suresh 2024).

Tensor names: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ouroboros.errors import InputError

__all__ = ["divergence", "forward_kl", "mixed_loss", "reverse_kl", "shared_noise", "total_variation"]


def forward_kl(target_NV: Tensor, draft_NV: Tensor) -> Tensor:
    """KL(p ‖ q) in nats, [N], of log-probabilities."""
    return F.kl_div(draft_NV, target_NV, reduction="none", log_target=True).sum(-1)


def reverse_kl(target_NV: Tensor, draft_NV: Tensor) -> Tensor:
    """KL(q ‖ p) in nats, [N], of log-probabilities."""
    return F.kl_div(target_NV, draft_NV, reduction="none", log_target=True).sum(-1)


def total_variation(target_NV: Tensor, draft_NV: Tensor) -> Tensor:
    """½ Σ |p − q|, 0 … 1, [N], of log-probabilities."""
    return 0.5 * (target_NV.exp() - draft_NV.exp()).abs().sum(-1)


def shared_noise(target_NV: Tensor, draft_NV: Tensor, most: int = 32) -> Tensor:
    """1 − Σᵢ 1 / Σⱼ max(pⱼ / pᵢ, qⱼ / qᵢ), 0 … 1, [N], of log-probabilities: the chance that the largest sums of
    log-probability and one Gumbel noise are different tokens'. Computed over the target's ``most`` likeliest tokens and
    one that stands for all others, so that it is a little too low."""
    first_NK = target_NV.topk(min(most, target_NV.shape[-1]), dim=-1).indices
    p_NK, q_NK = (_with_rest(each_NV.gather(-1, first_NK)) for each_NV in (target_NV, draft_NV))
    ratios_NKK = torch.maximum(p_NK[:, None] - p_NK[..., None], q_NK[:, None] - q_NK[..., None])
    return 1 - ratios_NKK.logsumexp(-1).neg().exp().sum(-1)


def _with_rest(logs_NK: Tensor, least: float = 1e-6) -> Tensor:
    """Log-probabilities of some tokens, and that of all others together."""
    rest_N1 = (1 - logs_NK.exp().sum(-1, keepdim=True)).clamp(min=least).log()
    return torch.cat([logs_NK, rest_N1], -1).clamp(min=-30.0)


def divergence(name: str, target_NV: Tensor, draft_NV: Tensor) -> Tensor:
    """The divergence of that name, [N], of log-probabilities."""
    match name:
        case "forward_kl":
            return forward_kl(target_NV, draft_NV)
        case "reverse_kl":
            return reverse_kl(target_NV, draft_NV)
        case "tv":
            return total_variation(target_NV, draft_NV)
        case "noise":
            return shared_noise(target_NV, draft_NV)
    raise InputError(f"divergence must be forward_kl, reverse_kl, tv or noise, not {name!r}")


def mixed_loss(
    weights: Mapping[str, float], target_logits_NV: Tensor | None, draft_logits_NV: Tensor, next_N: Tensor
) -> Tensor:
    """The weighted sum of losses, [N].

    Args:
        weights: see ``settings.parse_loss``. target_logits_NV: None where only ``text`` is weighted. Rows of logits
            that one model has beyond the other's vocabulary are padding, and left out.
        next_N: the token that follows in the text.
    """
    total = draft_logits_NV.new_zeros(len(draft_logits_NV), dtype=draft_logits_NV.float().dtype)
    if "text" in weights:
        total = total + weights["text"] * F.cross_entropy(draft_logits_NV.float(), next_N, reduction="none")
    others = {name: weight for name, weight in weights.items() if name != "text"}
    if others:
        assert target_logits_NV is not None, "a divergence needs the target's logits"
        shared = min(target_logits_NV.shape[-1], draft_logits_NV.shape[-1])
        target_NV = target_logits_NV[:, :shared].float().log_softmax(-1)
        draft_NV = draft_logits_NV[:, :shared].float().log_softmax(-1)
        for name, weight in others.items():
            total = total + weight * divergence(name, target_NV, draft_NV)
    return total
