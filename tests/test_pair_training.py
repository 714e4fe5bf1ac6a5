"""The embedded pair's recipe, in miniature: writing in batches, lessons, loops that are unlearned, a deeper draft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from ouroboros.training.examples import Batch
from ouroboros.training.losses import shared_noise
from ouroboros.training.trainer import Plan
from recipes.embedded_pair.follow import Follower, OwnText, own_batches
from recipes.embedded_pair.functions import Function
from recipes.embedded_pair.lessons import Lessons, lessons_of
from recipes.embedded_pair.meet import Meeting
from recipes.embedded_pair.models import blend, deepened, sharpen
from recipes.embedded_pair.refine import LOOPS_EVERY, Loops, Refiner, alternate, best_answers, good_beginnings, repeats
from recipes.embedded_pair.writer import End, Writer

ENDS: tuple[End, ...] = ("stop", "forbid")
EMBEDDED = Path(__file__).parents[1] / "src" / "ouroboros" / "embedded"


def llama(seed: int, layers: int = 2) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def test_batches_write_what_single_rows_write() -> None:
    module = llama(0)
    prompts = [[3, 4, 5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15]]
    found = Writer(module).write(prompts, 24, 0.0, 0)
    for prompt, text in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        whole = module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        assert text == whole[0, len(prompt) :].tolist()
    passed = Writer(module).write(prompts, 24, 1.5, 0, end="pass")
    assert any(0 in text for text in passed)
    assert {len(text) for text in passed} == {24}
    assert all(0 not in text for text in Writer(module).write(prompts, 24, 1.0, 0, end="forbid"))


def test_finished_rows_are_dropped() -> None:
    texts = Writer(llama(1)).write([[3, 4]] * 40, 40, 1.5, 7, batch=20)
    assert len({len(text) for text in texts}) > 3
    assert all(text.index(0) == len(text) - 1 if 0 in text else len(text) == 40 for text in texts)


def test_drawn_tokens_have_the_models_distribution() -> None:
    module = llama(2)
    texts = Writer(module).write([[5, 6, 7]] * 4000, 1, 0.7, 3, batch=1000)
    counts = torch.bincount(torch.tensor([text[0] for text in texts]), minlength=48) / 4000
    with torch.inference_mode():
        wanted = (module(torch.tensor([[5, 6, 7]])).logits[0, -1] / 0.7).softmax(-1)
    assert (counts - wanted).abs().max() < 0.04


def test_a_deeper_draft_computes_the_same() -> None:
    module, ids = llama(3, layers=3), torch.arange(3, 20)[None]
    deep = deepened(module, 5)
    assert deep.config.num_hidden_layers == len(deep.model.layers) == 5
    with torch.inference_mode():
        assert torch.allclose(deep(ids).logits, module(ids).logits, atol=1e-5)
    with pytest.raises(ValueError, match="from 3 to twice that, not 7"):
        deepened(module, 7)


def test_prompts_of_lessons_end_as_prompts_do() -> None:
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "target" / "tokenizer.json"))
    functions = [Function('def f(a):\n    """Adds."""\n', f"    b = a + {n}\n    return b\n") for n in range(60)]
    functions.append(Function('def g(a):\n    """Gets."""\n', "    return os.path.join(a)\n"))
    lessons = Lessons.split(lessons_of(tokenizer, functions, ["Question: 1 + 1?\nAnswer: 2\n"]))
    assert [len(some) for some in (lessons.plain, lessons.other, lessons.school, lessons.held_out)] == [58, 1, 1, 2]
    one = lessons.plain[0]
    assert one.prompt == tuple(tokenizer.encode(functions[0].head).ids)
    assert one.answer[-1] == 0
    assert tokenizer.decode([*one.prompt, *one.answer]).startswith(functions[0].head + "    b = a + ")
    assert tokenizer.decode(lessons.school[0].prompt).endswith("Answer:")
    assert not {example.tokens for example in lessons.epochs(2, 0)} & {one.example.tokens for one in lessons.held_out}


def test_repeats() -> None:
    tokens = [9, 9, 1, 2, 3, 4, 1, 2, 3, 4, 5]
    assert repeats(tokens, 2) == [False] * 7 + [True, False]
    assert not any(repeats([7, 1, 2, 3, 7, 1, 2, 3], 4))  # the prompt does not count


def test_beginnings_that_are_python_are_kept() -> None:
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "target" / "tokenizer.json"))
    prompt = tokenizer.encode('def f(a):\n    """Adds."""\n').ids
    whole = tokenizer.encode("    total = a + 1\n    return total * (a - 2) / 3\n").ids
    broken = tokenizer.encode("    if total(\n").ids
    texts = [(prompt, [*whole, *broken]), (prompt, broken * 3), (prompt, whole * 4)]
    [found] = good_beginnings(tokenizer, texts)
    assert (found.tokens, found.first) == ((*prompt, *whole), len(prompt))


def test_a_sharpened_model_is_the_same_at_another_temperature() -> None:
    module, ids = llama(7), torch.arange(3, 20)[None]
    with torch.inference_mode():
        before = module(ids).logits
        sharpen(module, 0.5)
        assert torch.allclose(module(ids).logits, before / 0.5, atol=1e-4)


def test_blended_weights_lie_between() -> None:
    module, before = llama(8), llama(9)
    first, second = module.model.norm.weight.clone(), before.model.norm.weight.clone()
    embedding = module.model.embed_tokens.weight.clone()
    blend(module, before, 0.25)
    assert torch.allclose(module.model.norm.weight, 0.25 * first + 0.75 * second)
    assert torch.allclose(module.lm_head.weight, 0.25 * embedding + 0.75 * before.lm_head.weight)


def test_loops_are_unlearned() -> None:
    module = llama(4)
    loop = (3, 4, 5, 6) * 6
    loops = Loops([((9, 8), loop)], 1, 64, 0)
    assert int(loops(0).learned_BL.sum()) == len(loop) - 7
    straight = Batch(
        torch.arange(10, 40)[None], torch.ones(1, 30, dtype=torch.bool).index_fill(1, torch.tensor(29), False)
    )
    refiner = Refiner(module, Plan(60, 3e-3, {"text": 1.0}))
    batches = alternate(lambda step: straight, loops)
    assert batches(LOOPS_EVERY - 1).ids_BL[0, 0] == 9
    kept = best_answers(module, [[((9, 8), loop), ((9, 8), (3, 4, 7, 0))], []])
    assert len(kept) == 1
    refiner.run(batches, 60)
    likely = best_answers(module, [[((9, 8), loop)], [((10,), tuple(range(11, 30)))]])
    assert likely[0].score < -4
    assert likely[1].score > -1.5


def test_a_draft_follows_its_target() -> None:
    target, draft = llama(5).requires_grad_(False), llama(6)
    heads = [(3 + n, 4 + n) for n in range(16)]
    texts = [
        OwnText(head, tuple(text), end == "stop")
        for end in ENDS
        for head, text in zip(heads, Writer(target).write(heads, 24, 1.0, 0, end=end), strict=True)
    ]
    follower = Follower(target, draft, Plan(80, 3e-3, {"forward_kl": 0.5, "tv": 2.0}))
    batches = own_batches(texts, [], 8, 64, 0)
    follower.run(batches, 80)
    assert sum(follower.losses[-10:]) < 0.6 * sum(follower.losses[:10])


def test_target_and_draft_meet() -> None:
    before, target, draft, stranger = (llama(seed).requires_grad_(seed == 5) for seed in (5, 5, 6, 6))
    before.requires_grad_(False)
    draft.requires_grad_(True)
    heads = [(3 + n, 4 + n) for n in range(16)]
    written = Writer(before).write(heads, 24, 1.0, 0, end="forbid")
    texts = [
        OwnText(head, tuple(text), ends) for ends in (False, True) for head, text in zip(heads, written, strict=True)
    ]
    loop = (3, 4, 5, 6) * 6
    batches = alternate(own_batches(texts, [], 8, 64, 0), Loops([((9, 8), loop)], 1, 64, 0))
    Meeting(before, target, draft, Plan(60, 3e-3, {})).run(batches, 60)

    ids_BL = torch.tensor([[*head, *text] for head, text in zip(heads, written, strict=True)])

    def apart(one: Any, other: Any) -> float:
        with torch.inference_mode():
            logs = (module(input_ids=ids_BL).logits.flatten(0, 1).log_softmax(-1) for module in (one, other))
            return float(shared_noise(*logs).mean())

    assert apart(target, draft) < 0.7 * apart(before, stranger)
    assert apart(target, draft) < apart(before, draft)
    assert 0 < apart(before, target) < 0.5 * apart(before, stranger)
    was, now = (best_answers(module, [[((9, 8), loop)]])[0].score for module in (before, target))
    assert now < was


@pytest.mark.slow
def test_the_whole_recipe_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.embedded_pair import make as embedded_pair

    questions = tmp_path / "questions.jsonl"
    rows = [
        {"question": f"How many are {n} and {n}?", "answer": f"Of {n} and {n} there are {2 * n}"} for n in range(40)
    ]
    questions.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.setattr(
        "sys.argv",
        f"embedded_pair --out {tmp_path / 'pair'} --size tiny --device cpu --gsm8k {questions} --package toolz "
        "--package networkx --most 200000 --workers 1 --target-steps 4 --lessons-steps 4 --refine-steps 6 "
        "--draft-steps 4 --meet-steps 2 --rounds 1 --answers 20 --samples 1 --endless 8 --texts 40 --card-prompts 2 "
        "--new-tokens 8".split(),
    )
    embedded_pair.main()
    card = (tmp_path / "pair" / "README.md").read_text(encoding="utf-8")
    assert "GSM8K" in card
    assert (tmp_path / "pair" / "draft" / "model.safetensors").exists()
