"""The audit: identical where decoding is lossless, near-ties where rounding decides, and planted defects found."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ouroboros import cli
from ouroboros.bench import rounding
from ouroboros.bench.audit import AUDITED, audit
from ouroboros.bench.demo import demo_prompts
from ouroboros.bench.nearness import judge
from ouroboros.bench.rounding import Spread
from ouroboros.bench.verdicts import DEFECT, IDENTICAL, NEAR_TIE, AuditReport
from ouroboros.commands.options import Place
from ouroboros.config import SamplingParams, SpeculativeOptions, options_for
from ouroboros.drafting.factory import NEEDS_DRAFT
from ouroboros.errors import InputError, ModelError
from ouroboros.generate import Decoder
from ouroboros.kernels.library import library
from ouroboros.models import llama
from ouroboros.models.base import CausalModel, ScoreRequest
from ouroboros.models.kv_cache import KVCache
from ouroboros.pairing import load as load_pair
from ouroboros.phrases.memory import Memory
from ouroboros.sampling import Sampler, gumbel_noise
from ouroboros.tree import TokenTree
from tests.pairs import Pair

Load = Callable[[str], Decoder]
ERROR = "ouroboros: error: "
TEXTS = ["def add(a, b):\n    return", "import os\n\nfor name in os.listdir("]
SAMPLED: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 20,
    "top_p": 0.95,
    "min_p": 0.01,
    "repetition_penalty": 1.1,
    "seed": 3,
}


# Trees of one size, whatever forwards cost: a defect must show in them.
SIZES: dict[str, dict[str, Any]] = {
    "ouroboros": {"control": False},
    "lookahead": {"window": 10, "ngram": 5, "branches": 8},
    "token_recycling": {"tree_tokens": 80},
}


def loader(target: CausalModel, draft: CausalModel, tokenizer: Any = None) -> Load:
    def load(method: str) -> Decoder:
        own = draft if method in NEEDS_DRAFT else None
        return Decoder(target, own, tokenizer, method, options_for(method, SIZES.get(method)), Memory())

    return load


def tiny_prompts() -> list[list[int]]:
    rng = random.Random(5)
    # A few different tokens alone: n-grams repeat, so that phrases and look-ups have something to find.
    return [rng.choices(rng.sample(range(40), 4), k=length) for length in (1, 30)]


@pytest.fixture(scope="module")
def half() -> Decoder:
    """The embedded pair in bfloat16 by PyTorch's operators: the kernels do not round differently, and leave no ties."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama, "unsupported", lambda *_: "a test")
        return load_pair(dtype="bfloat16", device="cpu")


def half_loader(decoder: Decoder) -> Load:
    assert decoder.draft is not None
    return loader(decoder.target, decoder.draft, decoder.tokenizer)


# ------------------------------------------------------------------------------------------- lossless: no false alarm


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_the_embedded_pair_in_float32_is_lossless(embedded: Pair, half: Decoder, settings: dict[str, Any]) -> None:
    load = loader(embedded.target, embedded.drafts["trained"], half.tokenizer)
    told: list[str] = []
    report = audit(load, TEXTS, SamplingParams(max_new_tokens=10, **settings), told.append)
    assert report.verdict == IDENTICAL
    assert [method.method for method in report.methods] == list(AUDITED)
    assert all(method.counts == {IDENTICAL: 2, NEAR_TIE: 0, DEFECT: 0} for method in report.methods)
    assert all(prompt.compared == prompt.new_tokens > 0 for method in report.methods for prompt in method.prompts)
    noise = report.noise
    assert not noise.unexplained
    assert 0 <= noise.batch.quantile <= noise.batch.largest <= noise.bound <= noise.limit < 1e-3
    assert min(noise.batch.rows, noise.tree.rows, noise.commit.rows) >= 10
    assert (report.backend, report.dtype, report.device) == ("native", "float32", "cpu")
    for method in ("autoregressive", *AUDITED):
        assert f"{method}, prompt 2 of 2" in told
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["verdict"] == IDENTICAL


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_random_model_in_float64_is_lossless(tiny: Pair, settings: dict[str, Any]) -> None:
    params = SamplingParams(max_new_tokens=24, **settings)
    report = audit(loader(tiny.target, tiny.drafts["similar"]), tiny_prompts(), params)
    assert report.verdict == IDENTICAL
    assert report.noise.bound < 1e-11


def test_bfloat16_parts_at_near_ties_alone(half: Decoder) -> None:
    """Where this was written the outputs part, at an edge of top-p: a token that would have won was cut off by a
    hundredth. Elsewhere they need not."""
    prompts = [prompt.text for prompt in demo_prompts() if prompt.task_id == "HumanEval/60"]
    params = SamplingParams(max_new_tokens=20, temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.1, seed=1)
    report = audit(half_loader(half), prompts, params, methods=["lookahead"])
    assert report.verdict in (IDENTICAL, NEAR_TIE), report
    assert 1e-3 < report.noise.bound < 0.5


@pytest.mark.skipif(isinstance(library(), str), reason="no kernels here")
def test_kernels_do_not_round_differently() -> None:
    """Any way to the same logits gives the same bits, in bfloat16 too."""
    load = half_loader(load_pair(dtype="bfloat16", device="cpu"))
    report = audit(load, TEXTS, SamplingParams(max_new_tokens=16, **SAMPLED), methods=["ouroboros"])
    assert report.verdict == IDENTICAL
    noise = report.noise
    assert noise.batch.largest == noise.tree.largest == noise.commit.largest == noise.bound == 0


class Rough:
    """A model that rounds as bfloat16 might, and more visibly: each logit is off by up to ``by``, otherwise for each
    size of a forward, but always in the same way, whatever stands in the tree."""

    def __init__(self, model: CausalModel, by: float) -> None:
        self._model, self._by = model, by
        self.info = dataclasses.replace(model.info, dtype="bfloat16")
        self.open, self.prefill = model.open, model.prefill

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        rows = sum(len(request.catch_up) + len(request.tree) - request.slot.pending for request in requests)
        return [self._blur(logits_NV, rows) for logits_NV in self._model.score(requests)]

    def _blur(self, logits_NV: Tensor, rows: int) -> Tensor:
        bits = (logits_NV * 1e6).round().abs() * 7919 + rows * 104729
        return logits_NV + self._by * (bits % 2001 / 1000 - 1)


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_what_a_rough_model_decides_otherwise_is_a_near_tie(tiny: Pair, settings: dict[str, Any]) -> None:
    target = Rough(tiny.target, by=0.05)
    params = SamplingParams(max_new_tokens=60, **settings)
    methods = ["lookahead", "ouroboros"]
    report = audit(loader(target, tiny.drafts["similar"]), tiny_prompts(), params, methods=methods)
    assert report.verdict == NEAR_TIE, report.noise
    assert 0.05 < report.noise.bound < 0.11
    parted = [prompt for method in report.methods for prompt in method.prompts if prompt.divergence]
    assert parted
    for prompt in parted:
        found = prompt.divergence
        assert found is not None
        assert found.plain is not None
        assert found.accelerated is not None
        assert found.verdict == NEAR_TIE == prompt.verdict
        assert found.plain.token != found.accelerated.token
        assert found.position == prompt.prompt_tokens + found.index
        assert prompt.compared == found.index + 1
        if not settings:
            assert min(found.plain.gap, found.accelerated.gap) >= 0
            assert max(found.plain.gap, found.accelerated.gap) <= found.tolerance == 2 * report.noise.bound
            assert found.margin <= found.tolerance


# ---------------------------------------------------------------------------------------- defects: none may be missed


def see_siblings(patch: pytest.MonkeyPatch, target: CausalModel) -> CausalModel:
    right = TokenTree.ancestor_mask

    def wrong(self: TokenTree, start: int = 0) -> Any:
        parents = np.array(self.parents)
        siblings = (parents[start:, None] == parents[None]) & (
            np.arange(len(parents)) <= np.arange(start, len(parents))[:, None]
        )
        return right(self, start) | siblings

    patch.setattr(TokenTree, "ancestor_mask", wrong)
    return target


def keep_wrong_rows(patch: pytest.MonkeyPatch, target: CausalModel) -> CausalModel:
    right = KVCache.commit
    patch.setattr(KVCache, "commit", lambda self, path: right(self, range(len(path))))
    return target


def keep_rejected_rows(patch: pytest.MonkeyPatch, target: CausalModel) -> CausalModel:
    right = KVCache.commit
    patch.setattr(KVCache, "commit", lambda self, path: right(self, range(self.pending)))
    return target


class WrongPositions:
    """Every node below the root stands one position too far."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self.info, self.open, self.prefill = model.info, model.open, model.prefill

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        return self._model.score([dataclasses.replace(request, tree=self._shift(request.tree)) for request in requests])

    def _shift(self, tree: TokenTree) -> TokenTree:
        shifted = copy.copy(tree)
        shifted.depths = [depth + 1 if depth else 0 for depth in tree.depths]
        return shifted


def wrong_positions(patch: pytest.MonkeyPatch, target: CausalModel) -> CausalModel:
    return WrongPositions(target)


PLANTED = {
    see_siblings: ("tree", ("lookahead", "ouroboros")),
    keep_wrong_rows: ("commit", ("lookahead", "ouroboros")),
    keep_rejected_rows: ("commit", ("lookahead", "prompt_lookup")),  # a draft model's own check would stop the others
    wrong_positions: ("tree", ("speculative", "prompt_lookup")),
}


@pytest.mark.parametrize("plant", PLANTED)
@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_planted_defects_are_found(
    tiny: Pair, monkeypatch: pytest.MonkeyPatch, plant: Any, settings: dict[str, Any]
) -> None:
    way, methods = PLANTED[plant]
    load = loader(plant(monkeypatch, tiny.target), tiny.drafts["similar"])
    report = audit(load, tiny_prompts(), SamplingParams(max_new_tokens=40, **settings), methods=methods)
    assert report.verdict == DEFECT
    assert way in report.noise.unexplained
    assert "batch" not in report.noise.unexplained
    assert report.noise.bound < 1e-11, "a defect must not raise the bound by which it is judged"
    assert [method.verdict for method in report.methods] == [DEFECT] * len(methods)


@pytest.mark.parametrize("plant", PLANTED)
def test_planted_defects_do_not_hide_in_the_rounding_of_bfloat16(
    half: Decoder, monkeypatch: pytest.MonkeyPatch, plant: Any
) -> None:
    way, methods = PLANTED[plant]
    assert half.draft is not None
    load = loader(plant(monkeypatch, half.target), half.draft, half.tokenizer)
    prompts = [TEXTS[0] + " a + b\n\n\n" + TEXTS[0]]
    report = audit(load, prompts, SamplingParams(max_new_tokens=16, ignore_eos=True), methods=methods[:1])
    assert report.verdict == DEFECT
    assert way in report.noise.unexplained
    assert report.noise.bound < 0.5


def test_a_sampler_whose_noise_depends_on_the_order_of_calls_is_found(
    tiny: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)

    def next_noise(seed: int, positions: Tensor, ids: Tensor) -> Tensor:
        uniform = torch.rand(torch.broadcast_shapes(positions.shape, ids.shape), generator=generator).double()
        return -torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-9)))

    monkeypatch.setattr("ouroboros.sampling.sampler.gumbel_noise", next_noise)
    params = SamplingParams(max_new_tokens=24, temperature=1.0, top_k=10, seed=3)
    report = audit(loader(tiny.target, tiny.drafts["similar"]), tiny_prompts()[1:], params)
    assert report.verdict == DEFECT
    assert not report.noise.unexplained  # the logits are in order
    assert all(method.counts[DEFECT] for method in report.methods)


def test_an_output_that_ends_early_is_a_defect(tiny: Pair) -> None:
    class Short(Decoder):
        def generate(self, prompt: Any, params: SamplingParams | None = None, **settings: Any) -> Any:
            result = super().generate(prompt, params, **settings)
            cut = result.token_ids[: -2 if self.method == "lookahead" else None]
            return dataclasses.replace(result, token_ids=cut)

    def load(method: str) -> Decoder:
        return Short(tiny.target, None, None, method, options_for(method), Memory())

    report = audit(load, tiny_prompts()[:1], SamplingParams(max_new_tokens=5), methods=["lookahead", "prompt_lookup"])
    lookahead, prompt_lookup = report.methods
    found = lookahead.prompts[0].divergence
    assert found is not None
    assert found.plain is not None
    assert (found.index, found.accelerated, found.verdict) == (3, None, DEFECT)
    assert found.plain.explained
    assert prompt_lookup.verdict == IDENTICAL
    assert report.verdict == DEFECT


class NotANumber:
    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self.info, self.open, self.prefill = model.info, model.open, model.prefill

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        return [logits_NV * math.nan for logits_NV in self._model.score(requests)]


def test_logits_that_are_no_numbers_end_an_audit(tiny: Pair) -> None:
    target = NotANumber(tiny.target)
    with pytest.raises(ModelError, match="gives no numbers for the token at position"):
        audit(loader(target, tiny.drafts["self"]), [[1, 2]], SamplingParams(max_new_tokens=3), methods=["lookahead"])


# --------------------------------------------------------------------------------------------------- the rule itself


def judged(batch: float, tree: float, commit: float, epsilon: float = 2.0**-7, scale: float = 20.0) -> rounding.Noise:
    return rounding._judge(epsilon, scale, *(Spread(10, largest, largest / 2) for largest in (batch, tree, commit)))


def test_the_rule_of_rounding() -> None:
    one = 20 * 2.0**-7
    noise = judged(0.2, 0.25, 0.1)
    assert (noise.bound, noise.limit, noise.unexplained) == (0.25, 0.8, ())
    noise = judged(0.2, 3.0, 0.1)
    assert (noise.bound, noise.unexplained) == (0.2, ("tree",)), "what is beyond rounding raises no bound"
    noise = judged(0.01, 0.02, 0.7)
    assert noise.limit == 4 * one, "a few roundings of the largest logit may always be met"
    assert noise.unexplained == ("commit",)
    noise = judged(9 * one, 0.1, 9 * one)
    assert (noise.limit, noise.bound, noise.unexplained) == (8 * one, 0.1, ("batch", "commit"))
    noise = judged(7 * one, 8 * one, 8.1 * one)
    assert (noise.limit, noise.unexplained) == (8 * one, ("commit",))
    noise = judged(31e-7 * 20, 0.0, 0.0, epsilon=1e-7)
    assert noise.unexplained == (), "in fp32 the sums round too"
    assert judged(0.0, 15e-7 * 20, 17e-7 * 20, epsilon=1e-7).unexplained == ("commit",)
    assert judged(33e-7 * 20, 0.0, 0.0, epsilon=1e-7).unexplained == ("batch",)
    assert judged(math.inf, math.inf, math.inf).bound == one


def test_trees_of_the_measurement_hold_the_text_and_wrong_tokens_beside_it(tiny: Pair) -> None:
    ids = list(range(20))
    for size in (1, 2, 3, 8, 64):
        for ahead in (ids[10:10], ids[10:11], ids[10:13]):
            tree, spine = rounding._tree(tiny.target.info, ids, 10, ahead[: size - 1], size)
            assert [tree.tokens[node] for node in spine] == [9, *ahead[: size - 1]]
            assert len(tree) <= size
            assert max(tree.depths) <= max(1, len(ahead))
    assert len(tree) > 30
    assert spine[-1] > 20, "a commit must have to move rows"
    chains = dataclasses.replace(tiny.target.info, trees=False)
    tree, spine = rounding._tree(chains, ids, 10, ids[10:12], 8)
    assert tree.parents == list(range(-1, 7))
    assert spine == [0, 1, 2]


# ----------------------------------------------------------------------------------------------------- near or not


def test_greedy_margins_by_hand() -> None:
    logits = torch.tensor([1.0, 3.0, 2.9, 0.0])
    near = judge(logits, SamplingParams(), 0, [5], 1, [1, 2, 0], bound=0.05)
    assert near.margin == pytest.approx(0.1)
    assert [choice.gap for choice in near.choices] == pytest.approx([0.0, 0.1, 2.0])
    assert [choice.explained for choice in near.choices] == [True, True, False]
    near = judge(logits, SamplingParams(), 0, [5], 1, [1, 2], bound=0.049)
    assert [choice.explained for choice in near.choices] == [True, False]
    # A penalty of 2 stretches differences, and the token that was seen loses.
    near = judge(logits, SamplingParams(repetition_penalty=2.0), 0, [1], 1, [1, 2], bound=0.05)
    assert near.slack == pytest.approx(0.1)
    assert [choice.gap for choice in near.choices] == pytest.approx([1.4, 0.0])


def test_edges_by_hand() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    params = SamplingParams(temperature=1.0, top_k=3, top_p=0.84, min_p=0.2)
    near = judge(probs.log(), params, 1, [0], 1, [0, 1, 2, 3], bound=0.0)
    edges = [choice.edges for choice in near.choices]
    assert [edge["top_k"] for edge in edges] == pytest.approx([math.log(10), math.log(6), math.log(3), -math.log(3)])
    # Of the three that top-k keeps the probabilities before each are 0, 50/95 and 80/95.
    assert [edge["top_p"] for edge in edges[:3]] == pytest.approx([0.84, 0.84 - 50 / 95, 0.84 - 80 / 95])
    assert [edge["min_p"] for edge in edges[:3]] == pytest.approx([math.log(5), math.log(3), math.log(1.5)])
    kept = judge(probs.log(), params, 1, [0], 1, [2, 3], bound=0.001).choices
    assert not kept[0].explained or kept[0].gap < 0.01, "0.842 of the mass stands before it"
    noise = gumbel_noise(1, torch.tensor(1), torch.arange(4))
    drawn = (probs.log() + noise)[:2]
    assert [choice.gap for choice in near.choices[:2]] == pytest.approx((drawn.max() - drawn).tolist())


def test_every_draw_from_logits_within_the_bound_is_explained() -> None:
    """And of tokens that no such logits have yielded in many trials most are not."""
    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    parted = unexplained = 0
    for case in range(200):
        params = SamplingParams(
            temperature=rng.choice([0.0, 0.3, 1.0, 2.0]),
            top_k=rng.choice([0, 1, 4, 12]),
            top_p=rng.choice([1.0, 0.9, 0.5, 0.05]),
            min_p=rng.choice([0.0, 0.02, 0.3, 1.0]),
            repetition_penalty=rng.choice([1.0, 1.5, 0.7]),
            presence_penalty=rng.choice([0.0, 0.5]),
        )
        history = rng.choices(range(24), k=6)
        logits_V = 2 * torch.randn(24, generator=generator, dtype=torch.float64)
        if case % 3 == 0:
            logits_V = logits_V.round()  # exact ties
        bound = rng.choice([0.0, 0.01, 0.2])
        off_RV = bound * (2 * torch.rand((40, 24), generator=generator, dtype=torch.float64) - 1)
        off_RV[:20] = bound * off_RV[:20].sign()
        sampler = Sampler(params, case, 24, 3)
        drawn = set(sampler.draw(logits_V + off_RV, [6] * 40, [history] * 40))
        near = judge(logits_V, params, case, history, 3, range(24), bound, epsilon=2.0**-52)
        explained = {choice.token for choice in near.choices if choice.explained}
        assert drawn <= explained, (params, bound)
        own = sampler.draw(logits_V[None], [6], [history])[0]
        assert near.choices[own].gap == 0
        parted += len(drawn) > 1
        unexplained += 24 - len(explained)
    assert parted > 20
    assert unexplained > 0.9 * 200 * 24


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": []}, "at least one prompt"),
        ({"methods": []}, "at least one method"),
        ({"methods": ["autoregressive"]}, "not 'autoregressive'"),
        ({"methods": ["magic"]}, "not 'magic'"),
        ({"params": SamplingParams(grammar={"regex": "a"})}, "grammar"),
    ],
)
def test_what_cannot_be_audited(change: dict[str, Any], words: str) -> None:
    def load(method: str) -> Decoder:
        raise AssertionError("nothing may be loaded")

    given: dict[str, Any] = {"load": load, "prompts": [[1]], "params": SamplingParams(), **change}
    with pytest.raises(InputError, match=words):
        audit(**given)


class ChainsOnly:
    """A model that takes no trees, as some of transformers' do."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self.info = dataclasses.replace(model.info, trees=False)
        self.open, self.prefill = model.open, model.prefill

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        assert all(request.tree.parents == list(range(-1, len(request.tree) - 1)) for request in requests)
        return self._model.score(requests)


def test_a_model_that_takes_chains_only_is_measured_with_chains(tiny: Pair) -> None:
    params = SamplingParams(max_new_tokens=600)  # to the end of the context
    load = loader(ChainsOnly(tiny.target), tiny.drafts["similar"])
    prompt = [1, 2, 3, 4] * 125
    report = audit(load, [prompt], params, methods=["lookahead", "speculative"])
    assert report.verdict == IDENTICAL
    assert report.methods[0].prompts[0].new_tokens == 12
    assert report.noise.commit.rows > 4


def test_a_seed_is_drawn_once_for_all(tiny: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([11])  # a second draw fails
    monkeypatch.setattr("ouroboros.bench.audit.secrets.randbits", lambda bits: next(drawn))
    params = SamplingParams(max_new_tokens=8, temperature=1.0)
    report = audit(loader(tiny.target, tiny.drafts["self"]), [[1, 2, 3]], params, methods=["speculative"])
    assert report.verdict == IDENTICAL
    assert report.params.seed == 11


# -------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def calls(embedded: Pair, half: Decoder, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The command line with models that are in memory already, and what it asked to load."""
    seen: list[dict[str, Any]] = []

    def load(target: Any, draft: Any, method: str, options: Any, *rest: Any) -> Decoder:
        seen.append({"target": target, "draft": draft, "method": method, "options": options, "rest": rest})
        return Decoder(embedded.target, embedded.drafts["trained"], half.tokenizer, method, options, Memory())

    monkeypatch.setattr(cli, "_load", load)
    return seen


def test_the_table_of_a_lossless_run(calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["audit", "--prompt", TEXTS[0], "--max-new-tokens", "8", "--ignore-eos", "--set", "draft_tokens=3"])
        == 0
    )
    out, err = capsys.readouterr()
    assert err == ""
    for method in AUDITED:
        assert re.search(rf"^ *{method} +identical +1 +0 +0 +8 *$", out, re.MULTILINE), out
    assert "float32 on cpu" in out
    assert out.rstrip().endswith("Lossless here: every output is that of plain decoding, token for token.")
    assert len(calls) == 1, "one pair for all methods"
    assert calls[0]["options"] == SpeculativeOptions(draft_tokens=3)
    assert calls[0]["rest"] == (Place(), None, False)


def test_json_is_one_object(calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": TEXTS[0], "task_id": "x"}, {"prompt": [5, 6, 7]}]
    (tmp_path / "prompts").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    args = ["audit", "--prompt", "hello", "--prompt-file", str(tmp_path / "prompts"), "--json", "--max-new-tokens", "4"]
    assert cli.main([*args, "--method", "prompt_lookup", "--method", "lookahead", "--temperature", "0.5"]) == 0
    out, err = capsys.readouterr()
    assert (err, out.count("\n")) == ("", 1)
    found = json.loads(out)
    assert found["verdict"] == "identical"
    assert [method["method"] for method in found["methods"]] == ["lookahead", "prompt_lookup"]
    assert [prompt["prompt_tokens"] for prompt in found["methods"][0]["prompts"]][2] == 3
    assert all(prompt["equal"] and prompt["divergence"] is None for prompt in found["methods"][1]["prompts"])
    assert found["noise"]["unexplained"] == []
    assert isinstance(found["params"]["seed"], int)


def test_a_defect_is_exit_status_1(
    calls: list[dict[str, Any]], embedded: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_rejected_rows(monkeypatch, embedded.target)
    args = ["audit", "--prompt", TEXTS[0], "--method", "lookahead", "--max-new-tokens", "12", "--ignore-eos"]
    assert cli.main(args) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"lookahead +defect +0 +0 +1", out), out
    assert re.search(r"lookahead, prompt 1, new token \d+: defect: plain \d+ '.*' \(gap .*\), accelerated \d+ '", out)
    assert "Beyond rounding: commit rows differ by up to" in out
    assert "NOT lossless" in out
    assert cli.main([*args, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    divergence = found["methods"][0]["prompts"][0]["divergence"]
    assert (found["verdict"], divergence["verdict"]) == ("defect", "defect")
    assert set(divergence) == {"index", "position", "plain", "accelerated", "margin", "tolerance", "verdict"}
    assert set(divergence["plain"]) == {"token", "gap", "edges", "explained"}


def test_a_near_tie_is_exit_status_0(
    half: Decoder, embedded: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Rough(embedded.target, by=0.4)
    monkeypatch.setattr(cli, "_load", lambda *args: Decoder(target, None, half.tokenizer, args[2], args[3], None))
    args = [
        "audit",
        "--method",
        "lookahead",
        "--max-new-tokens",
        "64",
        "--temperature",
        "1.5",
        "--ignore-eos",
        "--seed",
        "2",
    ]
    prompts = [part for name in "fgh" for part in ("--prompt", f"def {name}(a, b): return a + b" * 2)]
    assert cli.main([*args, *prompts]) == 0
    out = capsys.readouterr().out
    assert "lookahead, prompt " in out
    assert "Lossless up to rounding" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--method", "autoregressive"], ["'autoregressive'", *AUDITED]),
        (["--temperature", "-1"], ["temperature", "-1.0"]),
        (["--set", "speed=1"], ["'speed'", "window", "draft_tokens"]),
        (["--set", "max_ngram=2", "--method", "lookahead"], ["'max_ngram'", "lookahead", "branches"]),
        (["--set", "BOUNDS=1"], ["'BOUNDS'"]),
        (["--set", "window=wide"], ["window", "'wide'"]),
        (["--threads", "0"], ["--threads", "0"]),
        (["--prompt-file", "/nowhere/at all"], ["'/nowhere/at all'", "No such file"]),
        (["extra"], ["extra"]),
    ],
)
def test_bad_input_is_one_line(
    calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], args: list[str], words: list[str]
) -> None:
    assert cli.main(["audit", *args]) == 2
    out, err = capsys.readouterr()
    assert (out, calls) == ("", [])
    assert err.startswith(ERROR)
    assert err.count("\n") == 1
    assert [word for word in words if word not in err] == []


@pytest.mark.parametrize("line", ["plain", '{"prompt": ""}x', '{"prompt": [true]}', '{"prompt": []}', '["a"]', "{}"])
def test_a_wrong_line_of_a_prompt_file_is_named(
    calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    (tmp_path / "prompts").write_text('{"prompt": "a"}\n' + line)
    assert cli.main(["audit", "--prompt-file", str(tmp_path / "prompts")]) == 2
    err = capsys.readouterr().err
    assert "line 2" in err
    assert repr(line) in err
    assert calls == []


def test_models_of_ones_own_are_audited_with_what_they_can_run(calls: list[dict[str, Any]]) -> None:
    run = ["audit", "--prompt", "a", "--max-new-tokens", "2", "--json", "--target", "T"]
    assert cli.main(run) == 0
    assert [(call["target"], call["draft"], call["method"]) for call in calls] == [("T", None, "lookahead")]
    assert cli.main([*run, "--draft", "D"]) == 0
    assert [(call["target"], call["draft"], call["method"]) for call in calls[1:]] == [("T", "D", "speculative")]


def test_report_of_a_run_is_frozen(tiny: Pair) -> None:
    report = audit(loader(tiny.target, tiny.drafts["self"]), [[1, 2, 3]], SamplingParams(max_new_tokens=4))
    assert isinstance(report, AuditReport)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.dtype = "x"  # type: ignore[misc]
