"""AdamW, or Muon for the matrices inside the layers with AdamW for the rest; and the learning rate over the steps.

It knows nothing of losses and data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "build_optimizers", "rate_at", "set_rate"]

ADAMW_BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
MUON_MOMENTUM = 0.95
MUON_RATE = 20.0  # Muon's rate over AdamW's: its updates are orthogonal, so their length is known beforehand
_QUINTIC = (3.4445, -4.7750, 2.0315)


def rate_at(step: int, steps: int, warmup: float = 0.05, floor: float = 0.05, decay: float = 1.0) -> float:
    """Share of the peak learning rate at a step: it rises over ``warmup`` of the steps, and falls along half a cosine
    to ``floor`` over the last ``decay`` of them."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    falling = max(1, min(steps - rising, round(decay * steps)))
    done = max(0, step - (steps - falling)) / falling
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def orthogonalise(matrix: Tensor, rounds: int = 5) -> Tensor:
    """Nearly the orthogonal factor of a matrix, or of each of a stack of them, by Newton-Schulz iteration (Jordan et
    al. 2024); in bf16 on CUDA."""
    a, b, c = _QUINTIC
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.mT if tall else x
    back: Tensor = x.to(matrix.dtype)
    return back


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are made orthogonal (Jordan et al. 2024); for matrices alone."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "no line search here"
        for group in self.param_groups:
            alike: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for parameters in alike.values():  # matrices of one shape in one stack: a tenth of the kernels
                updates = orthogonalise(torch.stack([self._momentum(parameter) for parameter in parameters]))
                tall = max(1.0, parameters[0].shape[0] / parameters[0].shape[1]) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * tall)

    def _momentum(self, parameter: torch.nn.Parameter) -> Tensor:
        """The gradient with its momentum, looking ahead as Nesterov does."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"].lerp_(parameter.grad, 1 - MUON_MOMENTUM)
        return parameter.grad.lerp(momentum, MUON_MOMENTUM)


def build_optimizers(model: torch.nn.Module, rate: float, muon: bool) -> list[torch.optim.Optimizer]:
    """The optimisers of all parameters: one, or with ``muon`` two; ``rate``: AdamW's peak.

    Embeddings and output matrix, which are looked up rather than multiplied through, stay with AdamW.
    """
    outside = {id(p) for part in _ends(model) for p in part.parameters()}
    matrices: list[torch.nn.Parameter] = []
    decayed: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.ndim == 2 and id(parameter) not in outside:
            (matrices if muon else decayed).append(parameter)
        else:
            (decayed if parameter.ndim > 1 else others).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=rate, betas=ADAMW_BETAS, weight_decay=WEIGHT_DECAY)
    ]
    if matrices:
        found.append(Muon(matrices, rate * MUON_RATE, WEIGHT_DECAY))
    for optimizer in found:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return found


def _ends(model: torch.nn.Module) -> list[torch.nn.Module]:
    calls = (getattr(model, name, None) for name in ("get_input_embeddings", "get_output_embeddings"))
    parts = [call() for call in calls if call is not None]
    return [part for part in parts if part is not None]


def set_rate(optimizers: Iterable[torch.optim.Optimizer], share: float) -> None:
    """Puts every group at this share of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak"]
