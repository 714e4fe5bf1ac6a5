"""Training a draft: losses by hand, batches, replayed acceptance against real decoding, resuming, the command line."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import ouroboros
from ouroboros import InputError, LoadError, cli
from ouroboros.config import SpeculativeOptions
from ouroboros.phrases.storage import load_pool
from ouroboros.training.distill import distill
from ouroboros.training.examples import Batches, Example, windows
from ouroboros.training.losses import mixed_loss, shared_noise
from ouroboros.training.modules import kept_layers, prune, read_module, write_module
from ouroboros.training.optimizers import Muon, build_optimizers, orthogonalise, rate_at
from ouroboros.training.records import jobs_for, kept_records, read_records, record
from ouroboros.training.replay import agreements, chain, replay
from ouroboros.training.settings import DistillSettings, parse_loss
from ouroboros.training.trainer import Plan, Trainer

CPU = torch.device("cpu")
VOCAB = 24
TARGET = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
QWEN = transformers.Qwen3Config(
    vocab_size=30,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    use_sliding_window=True,
    sliding_window=8,
    layer_types=["full_attention", "sliding_attention"] * 2,
)
NEW: dict[str, Any] = {
    "rounds": 0,
    "loss": "forward_kl",
    "new_tokens": 12,
    "held_out": 2,
    "steps": 6,
    "batch": 4,
    "length": 32,
}


def llama(layers: int, seed: int, scale: float = 1.0, **settings: Any) -> Any:
    """A random Llama of a tiny vocabulary; ``scale`` sharpens what it says."""
    torch.manual_seed(seed)
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False}
    config = transformers.LlamaConfig(vocab_size=VOCAB, num_hidden_layers=layers, **{**ends, **TARGET, **settings})
    module = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale)
        for norm in (part for name, part in module.named_modules() if name.endswith("norm")):
            norm.weight.fill_(1.0)
    return module


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random target of two layers that has opinions, without a tokenizer."""
    out = tmp_path_factory.mktemp("target")
    write_module(llama(2, 1, scale=10.0), out, torch.float32, out)
    return out


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"prompt": [1 + (i * 7 + j * j) % (VOCAB - 1) for j in range(4 + i % 3)]} for i in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def settings(target: Path, prompts: Path, tmp_path: Path) -> Callable[..., DistillSettings]:
    def make(**changes: Any) -> DistillSettings:
        start = {} if {"layers", "draft", "hidden", "parameters"} & changes.keys() else {"hidden": 16, "heads": 2}
        values: dict[str, Any] = {"target": str(target), "out": str(tmp_path / "draft"), "prompts": (str(prompts),)}
        return DistillSettings(**{**values, **NEW, **start, **changes})

    return make


# --------------------------------------------------------------------------------------------------------- losses


def test_losses_of_four_tokens_by_hand() -> None:
    p, q = (0.5, 0.25, 0.125, 0.125), (0.25, 0.25, 0.25, 0.25)
    target_NV, draft_NV = (torch.tensor([values]).log() for values in (p, q))
    forward = 0.5 * math.log(2) - 2 * 0.125 * math.log(2)
    reverse = -0.25 * math.log(2) + 2 * 0.25 * math.log(2)
    expected = {"forward_kl": forward, "reverse_kl": reverse, "tv": 0.25, "text": math.log(4)}
    for name, value in expected.items():
        found = mixed_loss({name: 1.0}, target_NV + 3.0, draft_NV - 2.0, torch.tensor([2]))  # logits: up to a constant
        assert found.tolist() == pytest.approx([value], abs=1e-6), name
    mixed = mixed_loss(parse_loss("forward_kl=0.5,tv=2"), target_NV, draft_NV, torch.tensor([2]))
    assert mixed.tolist() == pytest.approx([0.5 * forward + 2 * 0.25], abs=1e-6)
    padded = torch.cat((draft_NV, torch.tensor([[9.0]])), dim=-1)  # a padding row of one model counts for nothing
    assert mixed_loss({"tv": 1.0}, target_NV, padded, torch.tensor([2])).tolist() == pytest.approx([0.25], abs=1e-6)


def test_shared_noise_is_how_often_draws_differ() -> None:
    p, q = (0.5, 0.25, 0.125, 0.125), (0.25, 0.25, 0.25, 0.25)
    target_NV, draft_NV = (torch.tensor([values]).log() for values in (p, q))
    by_hand = 1 - (1 / 4 + 1 / 5 + 1 / 8 + 1 / 8)
    found = mixed_loss({"noise": 1.0}, target_NV + 3.0, draft_NV - 2.0, torch.tensor([2]))
    assert found.tolist() == pytest.approx([by_hand], abs=1e-5)

    target_NV, draft_NV = (torch.randn(1, 200, generator=torch.Generator().manual_seed(n)) * 3 for n in (0, 1))
    noise_TV = -torch.empty(20_000, 200).exponential_(generator=torch.Generator().manual_seed(2)).log()
    differ = ((target_NV + noise_TV).argmax(-1) != (draft_NV + noise_TV).argmax(-1)).float().mean()
    found = shared_noise(target_NV.log_softmax(-1), draft_NV.log_softmax(-1), 128)
    assert found.tolist() == pytest.approx([float(differ)], abs=0.02)


@pytest.mark.parametrize("text", ["", "kl", "forward_kl=x", "tv=0", "tv=-1", "tv,tv", "tv=inf", "auto,tv"])
def test_bad_losses(text: str) -> None:
    with pytest.raises(InputError, match="loss must be auto, one of forward_kl, reverse_kl, tv, noise, text, or a mix"):
        parse_loss(text)


# ------------------------------------------------------------------------------------------------- batches, optimisers


def test_batches_depend_on_the_step_alone() -> None:
    examples = [Example(tuple(range(2 + i)), 1 + i % 2) for i in range(23)]
    once, again = (Batches(examples, 4, 64, seed=5) for _ in range(2))
    assert len(once) == 5
    wanted = [again(step).ids_BL for step in (7, 3, 12)]
    assert all(torch.equal(once(step).ids_BL, ids) for step, ids in zip((7, 3, 12), wanted, strict=True))
    rows = [tuple(row[: int(n) + 1].tolist()) for step in range(5) for row, n in _rows(once, step)]
    assert len(set(rows)) == len(rows) == 20, "once in an epoch"


def _rows(batches: Batches, step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    batch = batches(step)
    last = [row.nonzero().max() + 1 for row in batch.learned_BL]
    return list(zip(batch.ids_BL, last, strict=True))


def test_what_is_learned() -> None:
    batch = Batches([Example((5, 6, 7, 8, 9), 3)], 4, 4, seed=0)(0)
    assert batch.ids_BL.tolist() == [[6, 7, 8, 9]], "too long: the prompt loses its beginning"
    assert batch.learned_BL.tolist() == [[False, True, True, False]]
    assert [one.tokens for one in windows([(1, 2, 3, 4, 5), (6,)], 3)] == [(1, 2, 3), (3, 4, 5)]
    with pytest.raises(InputError, match="nothing to train on"):
        Batches([Example((3,))], 1, 8, seed=0)


def test_learning_rate() -> None:
    rates = [rate_at(step, 100, warmup=0.1, floor=0.1, decay=0.5) for step in range(100)]
    assert rates[0] == 0.1
    assert rates[9] == rates[49] == 1.0
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert sorted(rates[50:], reverse=True) == rates[50:]


def test_muon_steps_by_orthogonal_matrices() -> None:
    torch.manual_seed(0)
    for shape in ((8, 8), (4, 12), (12, 4)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert 0.6 < values.min() <= values.max() < 1.3
    module = llama(2, 0)
    adamw, muon = build_optimizers(module, 1e-3, muon=True)
    assert isinstance(muon, Muon)
    inside = {id(p) for p in muon.param_groups[0]["params"]}
    assert inside == {id(p) for name, p in module.named_parameters() if "proj" in name}
    outside = [id(p) for group in adamw.param_groups for p in group["params"]]
    assert sorted([*inside, *outside]) == sorted(id(p) for p in module.parameters())


# ------------------------------------------------------------------------------------------------ modules


def test_a_pruned_copy_keeps_layers_and_ends(target: Path) -> None:
    assert kept_layers(12, 3) == [0, 6, 11]
    assert kept_layers(6, 1) == [0]
    deep = llama(4, 3)
    copy = prune(deep, 2)
    assert copy.config.num_hidden_layers == 2
    theirs, ours = deep.state_dict(), copy.state_dict()
    for name, tensor in ours.items():
        source = name.replace("layers.1.", "layers.3.")
        assert torch.equal(tensor, theirs[source]), name
        assert tensor.data_ptr() != theirs[source].data_ptr()
    with pytest.raises(InputError, match="layers must be from 1 to 3 of the target's 4, not 4"):
        prune(deep, 4)


@pytest.mark.parametrize(
    "module",
    [
        transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=4, n_head=2, bos_token_id=0, eos_token_id=0),
        QWEN,
    ],
    ids=["gpt2", "qwen3"],
)
def test_other_families_can_be_pruned(module: Any, tmp_path: Path) -> None:
    whole = transformers.AutoModelForCausalLM.from_config(module).eval()
    write_module(prune(whole, 2), tmp_path, torch.float32, tmp_path)
    half = read_module(tmp_path, torch.float32, CPU)
    assert half(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 30)
    if hasattr(half.config, "layer_types"):
        assert half.config.layer_types == ["full_attention", "sliding_attention"]


# ------------------------------------------------------------------------------------------- records and replay


def test_replayed_acceptance_is_that_of_real_decoding(target: Path, prompts: Path, tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    module = read_module(target, torch.float32, CPU)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    write_module(module, draft, torch.float32, draft)
    tokens = [row["prompt"] for row in map(json.loads, prompts.read_text().splitlines())][:12]
    jobs = jobs_for(tokens, (0.0, 0.7, 1.0), 1, seed=11, every=True)
    decoder = ouroboros.load(target, method="lookahead")
    records = record(decoder, jobs, 20, tmp_path / "records.jsonl", lambda done, total: None)
    pair = ouroboros.load(target, draft, method="speculative", options=SpeculativeOptions(draft_tokens=3))
    stats = []
    for job, one in zip(jobs, records, strict=True):
        result = pair.generate(list(job.prompt), max_new_tokens=20, temperature=job.temperature, seed=job.seed)
        assert result.token_ids == one.tokens
        stats.append(result.stats)
    assert any(one.tokens[-1] == 0 for one in records), "some end by themselves"
    found = replay(module, records, VOCAB, gamma=3)
    assert found.forwards == tuple(one.target_forwards for one in stats)
    assert found.tokens == tuple(one.new_tokens for one in stats)
    assert 1.2 < found.tokens_per_target_forward < 3.9
    assert all(all(row) for row in agreements(read_module(target, torch.float32, CPU), records, VOCAB))


def test_chains() -> None:
    assert chain([True] * 6, 5, 6) == 1  # five and the target's own
    assert chain([True] * 7, 5, 7) == 2
    assert chain([False] * 3, 5, 3) == 3
    assert chain([True, False, True, True], 2, 4) == 2
    assert chain([True, True], 5, 20) == 1, "ended by an accepted end-of-sequence"


def test_records_are_kept(target: Path, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    jobs = jobs_for([(1, 2), (3, 4), (5, 6)], (1.0, 0.5), 2, seed=3)
    assert [job.temperature for job in jobs] == [1.0, 0.5, 0.5, 1.0, 1.0, 0.5]
    assert len({job.seed for job in jobs}) == 6
    decoder = ouroboros.load(target, method="lookahead")
    whole = record(decoder, jobs, 5, file, lambda done, total: None)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]) + lines[2][:9])  # cut in the middle of a line
    seen: list[tuple[int, int]] = []
    assert record(decoder, jobs, 5, file, lambda done, total: seen.append((done, total))) == whole
    assert seen[0] == (2, 6)
    assert read_records(file) == whole
    with pytest.raises(InputError, match="was written for other prompts"):
        kept_records(file, jobs_for([(9, 9)], (1.0,), 1, seed=3))


# ---------------------------------------------------------------------------------------------------- the whole


def test_acceptance_rises(settings: Callable[..., DistillSettings]) -> None:
    size = {"hidden": 32, "layers": 2, "heads": 2}
    plan = settings(
        steps=200,
        batch=16,
        new_tokens=24,
        learning_rate=1e-2,
        rounds=1,
        held_out=8,
        samples=4,
        measure_temperatures=(1.0,),
        **size,
    )
    report = distill(plan)
    before, after = (
        next(one for one in figures if one.method == "speculative" and one.temperature == 1)
        for figures in (report.before, report.after)
    )
    assert after.acceptance_rate > 1.3 * before.acceptance_rate
    assert after.tokens_per_target_forward > 1.15 * before.tokens_per_target_forward
    assert len(report.rounds) == 2
    assert {one.method for one in report.after} == {"speculative", "ouroboros"}
    kept = json.loads((Path(plan.out) / "distillation.json").read_text())
    assert kept["after"][0]["tokens_per_target_forward"] == report.after[0].tokens_per_target_forward
    assert "tokens per target forward" in (Path(plan.out) / "README.md").read_text()


class StopError(Exception):
    pass


@pytest.fixture(scope="module")
def whole(target: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> DistillSettings:
    """A small training that was not interrupted."""
    out = tmp_path_factory.mktemp("whole") / "draft"
    few = out.parent / "prompts.jsonl"
    few.write_text("".join(prompts.read_text(encoding="utf-8").splitlines(keepends=True)[:10]), encoding="utf-8")
    small = {"rounds": 1, "checkpoint_every": 2, "loss": "auto", "trial_steps": 2, "optimizer": "muon", "held_out": 1}
    own = {"target": str(target), "out": str(out), "prompts": (str(few),), "measure_temperatures": (1.0,), "layers": 1}
    plan = DistillSettings(**{**NEW, **small, **own, "new_tokens": 6})
    distill(plan)
    return plan


@pytest.mark.parametrize("where", [("training", 3), ("training", 4), ("draft-text-1", 5), ("trial of tv", 2)])
def test_an_interrupted_training_goes_on(whole: DistillSettings, tmp_path: Path, where: tuple[str, int]) -> None:
    other = dataclasses.replace(whole, out=str(tmp_path / "again"))

    def stop(stage: str, done: int, total: int, note: str) -> None:
        if (stage, done) == where:
            raise StopError

    with pytest.raises(StopError):
        distill(other, stop)
    with pytest.raises(InputError, match="is not empty"):
        distill(other)
    distill(other, resume=True)
    once, parts = (load_file(Path(out) / "model.safetensors") for out in (whole.out, other.out))
    assert all(torch.equal(once[name], parts[name]) for name in once)
    assert not list((Path(other.out) / "distillation").glob("*.pt"))


def test_micro_batches_give_the_same_steps(target: Path) -> None:
    module = read_module(target, torch.float32, CPU).requires_grad_(False)
    batches = Batches([Example(tuple(range(1 + i, 9 + i)), 1 + i % 4) for i in range(12)], 6, 16, seed=1)
    states = []
    for micro_batch in (None, 4):
        draft = llama(1, 5)
        Trainer(draft, module, Plan(4, 1e-3, {"tv": 1.0}, micro_batch=micro_batch)).run(batches, 4)
        states.append(draft.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], atol=1e-5, rtol=1e-4)


def test_text_alone_asks_no_target() -> None:
    trainer = Trainer(llama(1, 5), None, Plan(30, 1e-2, {"text": 1.0}))
    trainer.run(Batches([Example((1, 2, 3, 4) * 4)], 2, 16, seed=0), 30)
    assert trainer.losses[-1] < 0.5 * trainer.losses[0]


def test_the_loss_must_stay_a_number() -> None:
    draft = llama(1, 5)
    draft.lm_head.weight.data[:] = math.inf
    with pytest.raises(InputError, match="the loss is nan at step 1; learning_rate must be below"):
        Trainer(draft, None, Plan(4, 1e-2, {"text": 1.0})).run(Batches([Example((1, 2, 3))], 1, 8, seed=0), 4)


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ()}, "prompts must be at least one file"),
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"rounds": 6}, "rounds must be fewer than the 6 steps, not 6"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0, not 0.0"),
        ({"temperatures": (-1.0,)}, "temperatures must be numbers of at least 0"),
        ({"loss": "text", "rounds": 1}, "rounds must be 0 with the loss 'text'"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, muon, not 'sgd'"),
        ({"seed": 2**63}, "seed must be a whole number from 0"),
        ({"draft": "d", "layers": 1}, "draft 'd' has its sizes already; layers cannot be given too"),
        ({"layers": None, "hidden": None, "heads": None}, "no draft to begin with"),
        ({"layers": None, "hidden": None, "heads": 2}, "heads is for a new model"),
    ],
)
def test_settings_that_cannot_be(
    settings: Callable[..., DistillSettings], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": 99}, "prompts must be at least 100 different ones"),
        ({"prompts": ("none.jsonl",)}, "cannot read prompt file 'none.jsonl': No such file"),
        ({"layers": 2}, "layers must be from 1 to 1 of the target's 2, not 2"),
        ({"hidden": 10, "heads": 4}, r"hidden must be an even multiple of heads \(4\), not 10"),
        ({"parameters": 10}, "parameters must be at least .* with a vocabulary of 24 and these sizes, not 10"),
        ({"pool": "no/such/directory/pool"}, "pool 'no/such/directory/pool' cannot be made"),
        ({"device": "tpu"}, "device must be auto, cpu, cuda"),
    ],
)
def test_files_and_sizes_that_do_not_fit(
    settings: Callable[..., DistillSettings], changes: dict[str, Any], message: str
) -> None:
    plan = settings(**changes)
    with pytest.raises(InputError, match=message):
        distill(plan)
    assert not Path(plan.out).exists()


# ------------------------------------------------------------------------------------------------ command line


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedded = Path(ouroboros.__file__).parent / "embedded"
    rows = [{"prompt": f"def f{i}(n):\n"} for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "text.py").write_text("import os\n\n\ndef path(name):\n    return os.fspath(name)\n" * 8)
    out, pool = tmp_path / "draft", tmp_path / "phrases.pool"
    args = [
        "distill",
        "--target",
        str(embedded / "target"),
        "--out",
        str(out),
        "--prompts",
        str(tmp_path / "prompts.jsonl"),
    ]
    tiny = ["--steps", "2", "--new-tokens", "6", "--held-out", "1", "--batch", "2", "--length", "32"]
    start = ["--parameters", "0.6M", "--layers", "1", "--loss", "forward_kl=0.5,tv=0.5", "--rounds", "1"]
    more = ["--text", str(tmp_path / "text.py"), "--pool", str(pool), "--measure-temperature", "1", "--json"]
    assert cli.main([*args, *tiny, *start, *more]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert shown.err == ""
    assert found["loss"] == "forward_kl=0.5,tv=0.5"
    assert found["draft_parameters"] <= 600_000
    assert [(one["method"], one["temperature"]) for one in found["after"]] == [("speculative", 1.0), ("ouroboros", 1.0)]
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    with ouroboros.load(embedded / "target", out, pool=pool, pool_read_only=True) as decoder:
        assert found["phrases"] == len(load_pool(pool, decoder.fingerprint, 8192).phrases) > 20
        draft = decoder.generate("def f2(n):\n", max_new_tokens=8, seed=1, temperature=1.0)
    plain = ouroboros.load(embedded / "target", method="autoregressive")
    assert plain.generate("def f2(n):\n", max_new_tokens=8, seed=1, temperature=1.0).token_ids == draft.token_ids

    again = ["distill", "--resume", "--out", str(out)]
    for bad, words in (
        ([*args, *tiny, *start], "is not empty: choose another directory, or resume"),
        (again, "has ended: nothing is left to resume"),
        ([*again, "--steps", "9"], "steps is 2 in the training of"),
        (["distill", "--resume", "--out", str(tmp_path)], "holds no training to resume"),
        (["distill", "--out", "x", "--layers", "1"], "--target is missing"),
        ([*args, "--parameters", "many"], "--parameters must be a number such as 500k, 20M or 1.5B, not 'many'"),
    ):
        assert cli.main(bad) == 2
        shown = capsys.readouterr()
        assert words in shown.err
        assert len(shown.err.splitlines()) == 1


def test_a_draft_of_another_tokenizer_is_refused(tmp_path: Path, prompts: Path) -> None:
    embedded = Path(ouroboros.__file__).parent / "embedded"
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        text = (embedded / "draft" / name).read_text(encoding="utf-8")
        (other / name).write_text(text.replace("<|endoftext|>", "<|end|>"), encoding="utf-8")
    plan = DistillSettings(str(embedded / "target"), str(tmp_path / "out"), (str(prompts),), draft=str(other))
    with pytest.raises(LoadError, match="has another tokenizer than the target; both must be the same"):
        distill(plan)
