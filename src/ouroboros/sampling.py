"""Warping and keyed draws: which token a row of logits yields at a position.

A draw is a fixed function of (logits, parameters, seed, position, history): Gumbel noise g(seed, position, token) comes
from a stateless hash, and the token is the argmax of the warped log-probability plus g (Gumbel-max trick). So every
method, draft length, pool and batch gives the same tokens for the same seed, and a draft model that draws with the same
noise is accepted more often. Exact ties go to the lowest token id. Order, in fp32 at least: logit bias, repetition
penalty, presence and frequency penalty, the caller's processors, temperature, top-k, top-p, min-p. This file knows
nothing of trees or models.

Tensor names: R rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ouroboros.config import Processor, SamplingParams

__all__ = ["Sampler", "gumbel_noise", "keep_largest"]

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # splitmix64's finaliser (Steele, Lea, Flood 2014)


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical shift: int64 shifts in copies of the sign


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX[0])
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX[1])
    return x ^ _shift_right(x, 31)


def gumbel_noise(seed: int, positions: Tensor, ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float64, for each pair of (position, token id); the shapes broadcast.

    Args:
        seed: 0 … 2**63-1. positions, ids: int64. The result depends on these three numbers alone, on every device.
    """
    step = _signed(_GOLDEN)
    state = _mix(torch.tensor(_signed(seed + _GOLDEN), device=positions.device))
    state = _mix(_mix(state + positions * step) + ids * step)
    uniform = (_shift_right(state, 12).double() + 0.5) * 2.0**-52  # exact, and in (0, 1) without its ends
    return -torch.log(-torch.log(uniform))


def keep_largest(scores_RV: Tensor, counts_R1: Tensor | int) -> Tensor:
    """bool [R, V]: the ``counts`` largest entries of each row; of equal ones those with the lowest index."""
    if isinstance(counts_R1, int):
        edge_R1 = scores_RV.topk(counts_R1, dim=-1).values[:, -1:]
    else:
        edge_R1 = scores_RV.topk(int(counts_R1.max()), dim=-1).values.gather(-1, counts_R1 - 1)
    above_RV = scores_RV > edge_R1
    tied_RV = scores_RV == edge_R1
    room_R1 = counts_R1 - above_RV.sum(-1, keepdim=True)
    return above_RV | (tied_RV & (tied_RV.cumsum(-1) <= room_R1))


class Sampler:
    """Draws tokens for one request. Holds no state but a cache of noise rows.

    Args:
        params: the request's parameters. seed: the request's seed (``params.seed`` or a drawn one).
        vocab_size: of the target model; rows of logits of another length are cut or filled up.
        prompt_length: presence and frequency penalties count the tokens behind the prompt.
        processors: applied behind those of ``params``.
    """

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        vocab_size: int,
        prompt_length: int = 0,
        processors: Sequence[Processor] = (),
    ) -> None:
        self.params = params
        self.seed = seed
        self.vocab_size = vocab_size
        self.prompt_length = prompt_length
        self.processors = (*params.processors, *processors)
        self._noise: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}

    @property
    def plain_greedy(self) -> bool:
        """Whether a draw is the argmax of the raw logits, whatever the history."""
        return self.params.greedy and not self.needs_history and not self.params.logit_bias

    @property
    def needs_history(self) -> bool:
        """Whether draws depend on the history; where they do not, histories may be empty."""
        return self._penalised or bool(self.processors)

    @property
    def _penalised(self) -> bool:
        params = self.params
        return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0

    def argmax(self, logits_RV: Tensor) -> list[int]:
        """The likeliest token of each raw row (ties to the lowest id); one transfer to the host."""
        ids: list[int] = self._fit(logits_RV).argmax(-1).tolist()
        return ids

    def draw(self, logits_RV: Tensor, positions: Sequence[int], histories: Sequence[Sequence[int]]) -> list[int]:
        """The token that each row yields.

        Args:
            logits_RV: raw logits, any float type. positions: of the tokens to be drawn, from the prompt's first on.
            histories: all tokens before each (prompt included); they may be empty unless ``needs_history``.
        """
        ids: list[int] = self.perturbed(logits_RV, positions, histories).argmax(-1).tolist()
        return ids

    @torch.inference_mode()
    def perturbed(self, logits_RV: Tensor, positions: Sequence[int], histories: Sequence[Sequence[int]]) -> Tensor:
        """Warped logits plus noise, [R, V] in fp32 (fp64 for fp64 logits): the draw is each row's argmax."""
        params = self.params
        scores_RV = self.warp(self._fit(logits_RV), histories)
        if params.greedy:
            return scores_RV
        if params.top_k or params.top_p < 1 or params.min_p:  # few tokens survive: noise for those alone
            rows_N, ids_N = torch.isfinite(scores_RV).nonzero(as_tuple=True)
            positions_R = torch.tensor(positions, device=scores_RV.device)
            noise_N = gumbel_noise(self.seed, positions_R[rows_N], ids_N)
            scores_RV[rows_N, ids_N] += noise_N.to(scores_RV.dtype)
            return scores_RV
        noise_RV = torch.stack([self._noise_row(p, scores_RV) for p in positions])
        return scores_RV + noise_RV

    def _fit(self, logits_RV: Tensor) -> Tensor:
        """Rows of the target's vocabulary: a draft model's matrix may be padded further, or less (never drawn then)."""
        missing = self.vocab_size - logits_RV.shape[-1]
        return F.pad(logits_RV, (0, missing), value=-math.inf) if missing > 0 else logits_RV[:, : self.vocab_size]

    def warp(self, logits_RV: Tensor, histories: Sequence[Sequence[int]]) -> Tensor:
        """Scores [R, V] after bias, penalties, processors and warping, -inf for what is cut away."""
        params = self.params
        scores_RV = logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
        if params.logit_bias:
            ids = torch.tensor([token for token, _ in params.logit_bias], device=scores_RV.device)
            bias = torch.tensor([value for _, value in params.logit_bias], device=scores_RV.device)
            scores_RV = scores_RV.index_add(-1, ids, bias.to(scores_RV.dtype).expand(len(scores_RV), -1))
        if self._penalised:
            scores_RV = self._penalise(scores_RV.clone(), histories)
        if self.processors:
            scores_RV = self._process(scores_RV, histories)
        if params.greedy:
            return scores_RV
        scores_RV = scores_RV / params.temperature
        size = scores_RV.shape[-1]
        if 0 < params.top_k < size:
            scores_RV = scores_RV.masked_fill(~keep_largest(scores_RV, params.top_k), -math.inf)
        if params.top_p < 1:
            probs_RV = scores_RV.softmax(-1)
            ordered_RV = probs_RV.sort(-1, descending=True).values
            before_RV = ordered_RV.cumsum(-1) - ordered_RV
            counts_R1 = (before_RV < params.top_p).sum(-1, keepdim=True).clamp(min=1)
            scores_RV = scores_RV.masked_fill(~keep_largest(probs_RV, counts_R1), -math.inf)
        if params.min_p:
            floor_R1 = scores_RV.amax(-1, keepdim=True) + math.log(params.min_p)
            scores_RV = scores_RV.masked_fill(scores_RV < floor_R1, -math.inf)
        return scores_RV

    def _penalise(self, scores_RV: Tensor, histories: Sequence[Sequence[int]]) -> Tensor:
        """Repetition penalty (Keskar et al. 2019) over prompt and output, the others (OpenAI) over the output alone."""
        params = self.params
        for row, history in enumerate(histories):
            if params.repetition_penalty != 1:
                seen = torch.tensor(sorted(set(history)), device=scores_RV.device)
                old, penalty = scores_RV[row, seen], params.repetition_penalty
                scores_RV[row, seen] = torch.where(old < 0, old * penalty, old / penalty)
            if params.presence_penalty or params.frequency_penalty:
                counts = Counter(history[self.prompt_length :])
                seen = torch.tensor(list(counts), dtype=torch.long, device=scores_RV.device)
                minus = [params.presence_penalty + params.frequency_penalty * count for count in counts.values()]
                scores_RV[row, seen] -= torch.tensor(minus, dtype=scores_RV.dtype, device=scores_RV.device)
        return scores_RV

    def _process(self, scores_RV: Tensor, histories: Sequence[Sequence[int]]) -> Tensor:
        """The caller's processors, as transformers calls them: rows of equal history length together."""
        out_RV = torch.empty_like(scores_RV)
        groups: dict[int, list[int]] = {}
        for row, history in enumerate(histories):
            groups.setdefault(len(history), []).append(row)
        for rows in groups.values():
            ids_BL = torch.tensor([list(histories[row]) for row in rows], dtype=torch.long, device=scores_RV.device)
            scores_BV = scores_RV[rows]
            for processor in self.processors:
                scores_BV = processor(ids_BL, scores_BV)
            out_RV[rows] = scores_BV.to(out_RV.dtype)
        return out_RV

    def _noise_row(self, position: int, like: Tensor) -> Tensor:
        key = (position, like.device, like.dtype)
        row = self._noise.get(key)
        if row is None:
            if len(self._noise) >= 64:  # the draft's positions and the target's overlap: a step's worth suffices
                self._noise.clear()
            ids = torch.arange(self.vocab_size, device=like.device)
            row = gumbel_noise(self.seed, torch.tensor(position, device=like.device), ids).to(like.dtype)
            self._noise[key] = row
        return row
