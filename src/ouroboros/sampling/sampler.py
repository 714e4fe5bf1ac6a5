"""Warping and keyed draws: which token a row of logits yields at a position.

A draw is a fixed function of (logits, parameters, seed, position, history): Gumbel noise g(seed, position, token) comes
from a stateless hash, and the token is the argmax of the warped log-probability plus g (Gumbel-max trick). So every
method, draft length, pool and batch gives the same tokens for the same seed, and a draft model that draws with the same
noise is accepted more often. Exact ties go to the lowest token id. Order, in fp32 at least: logit bias, repetition
penalty, presence and frequency penalty, the caller's processors, temperature, top-k, top-p, min-p. This file knows
nothing of trees or models.

Tensor names: R rows, V vocabulary, K survivors (see warping.py).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ouroboros.config import Processor, SamplingParams
from ouroboros.sampling.choices import Choices, choices
from ouroboros.sampling.histories import Histories, Text
from ouroboros.sampling.noise import gumbel_noise
from ouroboros.sampling.penalties import penalise
from ouroboros.sampling.rows import Chosen, choose, guess, noise
from ouroboros.sampling.sound import check_processed, share
from ouroboros.sampling.threads import on_this_thread
from ouroboros.sampling.warping import Survivors, survivors

__all__ = ["Sampler"]

CPU = torch.device("cpu")


class Sampler:
    """Draws tokens for one request. What it keeps (the text's counts, rows of noise) saves time and changes nothing.

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
        self._plain = not (self.needs_history or params.logit_bias or self._cuts)
        self._text = Text(vocab_size, prompt_length)
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

    @property
    def _cuts(self) -> bool:
        params = self.params
        return not params.greedy and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)

    def argmax(self, logits_RV: Tensor) -> list[int]:
        """The likeliest token of each raw row (ties to the lowest id); one transfer to the host."""
        if chosen := choose(logits_RV, self.vocab_size):
            return [row[0] for row in chosen.ids]
        return self._argmax(logits_RV)

    @on_this_thread
    def _argmax(self, logits_RV: Tensor) -> list[int]:
        logits_RV = self._fit(logits_RV)
        if logits_RV.device.type != "cpu":
            ids: list[int] = logits_RV.argmax(-1).tolist()
            return ids
        found: list[int] = logits_RV.to(_type(logits_RV)).numpy().argmax(-1).tolist()  # NumPy: as in warping.py
        return found

    def draw(
        self, logits_RV: Tensor, positions: Sequence[int], histories: Histories | Sequence[Sequence[int]]
    ) -> list[int]:
        """The token that each row yields.

        Args:
            logits_RV: raw logits, any float type. positions: of the tokens to be drawn, from the prompt's first on.
            histories: all tokens before each (prompt included); they may be empty unless ``needs_history``.
        """
        if chosen := self._choose(logits_RV, positions, 1):
            return [row[0] for row in chosen.ids]
        if not self._cuts:
            return self.argmax(self.perturbed(logits_RV, positions, histories))
        return self._draw_survivor(logits_RV, positions, histories)

    @on_this_thread
    def _draw_survivor(
        self, logits_RV: Tensor, positions: Sequence[int], histories: Histories | Sequence[Sequence[int]]
    ) -> list[int]:
        kept = self._survivors(self._tempered(self._fit(logits_RV), histories), positions)
        best_R = kept.scores_RK.argmax(-1)
        ids: list[int] = kept.ids_RK[np.arange(len(best_R)), best_R].tolist()
        return ids

    def choices(
        self,
        logits_RV: Tensor,
        positions: Sequence[int],
        histories: Histories | Sequence[Sequence[int]],
        count: int,
        pairs: Sequence[tuple[int, int]] = (),
    ) -> Choices:
        """The ``count`` likeliest draws of each row and how likely the logits with noise make them; see ``draw``. Of a
        row with NaN or infinity nothing is likely.

        Args:
            pairs: (row, token) whose probabilities are asked for as well.
        """
        chosen = self._choose(logits_RV, positions, count, pairs)
        if chosen is None:
            return choices(self.perturbed(logits_RV, positions, histories), count, pairs)
        probs = [
            [share(score, row[0], total) for score in row]
            for row, total in zip(chosen.scores, chosen.sums, strict=True)
        ]
        asked = [
            share(score, chosen.scores[row][0], chosen.sums[row])
            for (row, _), score in zip(pairs, chosen.asked, strict=True)
        ]
        return Choices(chosen.ids, probs, asked)

    def likeliest(self, logits_RV: Tensor, count: int) -> tuple[list[list[int]], list[list[float]]]:
        """The ``count`` likeliest tokens of each raw row, best first, and their log-probabilities at temperature 1; NaN
        where the row holds NaN or infinity."""
        found = choose(logits_RV, self.vocab_size, count, pairs=())
        if found is not None:
            logs = [
                [score - row[0] - (math.log(total) if total > 0 else math.nan) for score in row]
                for row, total in zip(found.scores, found.sums, strict=True)
            ]
            return found.ids, logs
        best = self._fit(logits_RV).to(_type(logits_RV)).log_softmax(-1).topk(min(count, self.vocab_size), dim=-1)
        return best.indices.tolist(), best.values.tolist()

    def guess(
        self, ids_K: array[int], logs_K: array[float], position: int, count: int
    ) -> tuple[list[int], list[float]]:
        """The ``count`` likeliest draws at ``position`` if these (at most 64) are the likeliest tokens, best first, and
        their log-probabilities; and how likely the noise makes them among these. Penalties and cuts are left out."""
        if self.params.greedy:
            return ids_K[:count].tolist(), [math.exp(log) for log in logs_K[:count]]
        found = guess(self.seed, position, self.params.temperature, ids_K, logs_K, count)
        if found is not None:
            return found
        noise_K = gumbel_noise(self.seed, torch.tensor([position]), torch.tensor(ids_K.tolist())).numpy()
        scores_K = np.array(logs_K) / self.params.temperature + noise_K
        order = np.argsort(-scores_K, kind="stable")
        weights_K = np.exp(scores_K - scores_K[order[0]])
        best = order[:count]
        return [ids_K[i] for i in best], (weights_K[best] / weights_K.sum()).tolist()

    def _choose(
        self,
        logits_RV: Tensor,
        positions: Sequence[int],
        count: int,
        pairs: Sequence[tuple[int, int]] | None = None,
    ) -> Chosen | None:
        """In one call, where noise and temperature are all that is between logits and draws."""
        if not self._plain or logits_RV.dtype == torch.float64:
            return None
        if self.params.greedy:
            return choose(logits_RV, self.vocab_size, count, pairs=pairs)
        noise_RV = [self._noise_row(position, logits_RV) for position in positions]
        return choose(logits_RV, self.vocab_size, count, self.params.temperature, noise_RV, pairs)

    @on_this_thread
    def perturbed(
        self, logits_RV: Tensor, positions: Sequence[int], histories: Histories | Sequence[Sequence[int]]
    ) -> Tensor:
        """Warped logits plus noise, [R, V] in fp32 (fp64 for fp64 logits): the draw is each row's argmax."""
        scores_RV = self._tempered(self._fit(logits_RV), histories)
        if self.params.greedy:
            return scores_RV
        if self._cuts:
            return self._survivors(scores_RV, positions).spread(scores_RV)
        for row, position in enumerate(positions):
            scores_RV[row] += self._noise_row(position, scores_RV)
        return scores_RV

    @on_this_thread
    def warp(self, logits_RV: Tensor, histories: Histories | Sequence[Sequence[int]]) -> Tensor:
        """Scores [R, V] after bias, penalties, processors and warping, -inf for what is cut away."""
        scores_RV = self._tempered(logits_RV, histories)
        return survivors(scores_RV, self.params).spread(scores_RV) if self._cuts else scores_RV

    def _fit(self, logits_RV: Tensor) -> Tensor:
        """Rows of the target's vocabulary: a draft model's matrix may be padded further, or less (never drawn then)."""
        missing = self.vocab_size - logits_RV.shape[-1]
        return F.pad(logits_RV, (0, missing), value=-math.inf) if missing > 0 else logits_RV[:, : self.vocab_size]

    def _tempered(self, logits_RV: Tensor, histories: Histories | Sequence[Sequence[int]]) -> Tensor:
        """Scores after all that comes before top-k, in memory of their own."""
        params = self.params
        scores_RV = logits_RV.to(_type(logits_RV), copy=True, memory_format=torch.contiguous_format)
        if params.logit_bias:
            ids = torch.tensor([token for token, _ in params.logit_bias], device=scores_RV.device)
            bias = torch.tensor([value for _, value in params.logit_bias], device=scores_RV.device)
            scores_RV.index_add_(-1, ids, bias.to(scores_RV.dtype).expand(len(scores_RV), -1))
        if self.needs_history:
            histories = histories if isinstance(histories, Histories) else Histories.of(histories)
            self._text.follow(histories.base)
            if self._penalised:
                penalise(scores_RV, params, self._text, histories)
            if self.processors:
                scores_RV = self._process(scores_RV, histories)
        return scores_RV if params.greedy else scores_RV.div_(params.temperature)

    def _process(self, scores_RV: Tensor, histories: Histories) -> Tensor:
        """The caller's processors, as transformers calls them: rows of equal history length together."""
        out_RV = torch.empty_like(scores_RV)
        groups: dict[int, list[int]] = {}
        for row, tail in enumerate(histories.tails):
            groups.setdefault(len(tail), []).append(row)
        for length, rows in groups.items():
            base_BL = np.broadcast_to(self._text.ids, (len(rows), len(histories.base)))
            tails_BL = np.array([histories.tails[row] for row in rows], dtype=np.int64).reshape(len(rows), length)
            ids_BL = torch.from_numpy(np.concatenate((base_BL, tails_BL), axis=-1)).to(scores_RV.device)
            scores_BV = scores_RV[rows]
            for processor in self.processors:
                before_BV, scores_BV = scores_BV, processor(ids_BL, scores_BV)
                check_processed(processor, before_BV, scores_BV)
            out_RV[rows] = scores_BV.to(out_RV.dtype)
        return out_RV

    def _survivors(self, scores_RV: Tensor, positions: Sequence[int]) -> Survivors:
        """With noise."""
        kept = survivors(scores_RV, self.params)
        alive = np.nonzero(kept.scores_RK > -math.inf)
        positions_N, ids_N = np.asarray(positions)[alive[0]], kept.ids_RK[alive]
        noise_N = gumbel_noise(self.seed, torch.from_numpy(positions_N), torch.from_numpy(ids_N)).numpy()
        kept.scores_RK[alive] += noise_N.astype(kept.scores_RK.dtype)
        return kept

    def _noise_row(self, position: int, logits: Tensor) -> Tensor:
        key = (position, logits.device, _type(logits))
        row = self._noise.get(key)
        if row is None:
            if len(self._noise) >= 64:  # the draft's positions and the target's overlap: a step's worth suffices
                self._noise.clear()
            if key[1:] == (CPU, torch.float32):
                row = noise(self.seed, position, self.vocab_size)
            if row is None:
                ids = torch.arange(self.vocab_size, device=logits.device)
                row = gumbel_noise(self.seed, torch.tensor(position, device=logits.device), ids).to(key[2])
            self._noise[key] = row
        return row


def _type(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
