"""transformers' own call: the same greedy tokens as its greedy search, whatever is asked for."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TextIteratorStreamer,
)

import ouroboros
from ouroboros import InputError
from ouroboros.integrations.generate import REPOSITORY, OuroborosOutput
from ouroboros.phrases.pool import PhrasePool
from tests.pairs import EMBEDDED

PROMPT = "def fibonacci(n):\n    "


@pytest.fixture(scope="module")
def target() -> Any:
    return AutoModelForCausalLM.from_pretrained(EMBEDDED / "target", dtype=torch.float32)


@pytest.fixture(scope="module")
def draft() -> Any:
    return AutoModelForCausalLM.from_pretrained(EMBEDDED / "draft", dtype=torch.float32)


@pytest.fixture(scope="module")
def words() -> Any:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "target", padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.2},
        {"no_repeat_ngram_size": 3},
        {"min_new_tokens": 20},
        {"bad_words_ids": [[199]], "suppress_tokens": [3]},
        {"eos_token_id": [0, 281, 3]},
        {"max_length": 20, "max_new_tokens": None},
    ],
    ids=str,
)
def test_greedy_is_transformers_own(target: Any, draft: Any, words: Any, settings: dict[str, Any]) -> None:
    inputs = words(PROMPT, return_tensors="pt", return_token_type_ids=False)
    settings = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0, **settings}
    plain = target.generate(**inputs, **settings)
    for own in (
        {"draft_model": draft},
        {},
        {"method": "speculative", "draft_model": draft},
        {"method": "prompt_lookup"},
    ):
        fast = target.generate(**inputs, **settings, **own, custom_generate=ouroboros.custom_generate)
        assert fast.tolist() == plain.tolist()


def test_a_dictionary_with_scores_and_stats(target: Any, draft: Any, words: Any) -> None:
    inputs = words(PROMPT, return_tensors="pt", return_token_type_ids=False)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "repetition_penalty": 1.1}
    settings |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "min_new_tokens": 12}
    plain = target.generate(**inputs, **settings)
    fast = target.generate(**inputs, **settings, draft_model=draft, custom_generate=ouroboros.custom_generate)
    assert isinstance(fast, OuroborosOutput)
    assert fast.sequences.tolist() == plain.sequences.tolist()
    for name in ("scores", "logits"):
        assert len(fast[name]) == 12
        for ours, theirs in zip(fast[name], plain[name], strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    assert fast.stats is not None
    assert fast.stats[0].target_forwards < 12


def test_rows_of_a_batch_are_those_of_single_calls_and_of_transformers(target: Any, draft: Any, words: Any) -> None:
    prompts = [PROMPT, "import os\n", "class Tree:\n    def insert(self, value):\n"]
    inputs = words(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    settings = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    plain = target.generate(**inputs, **settings)
    pool = PhrasePool()
    fast = target.generate(
        **inputs, **settings, draft_model=draft, phrase_pool=pool, custom_generate=ouroboros.custom_generate
    )
    assert fast.tolist() == plain.tolist()
    assert len(pool) > 0
    right = {"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    with pytest.raises(InputError, match="left"):
        target.generate(**right, **settings, custom_generate=ouroboros.custom_generate)


class StopAt(StoppingCriteria):
    def __init__(self, length: int) -> None:
        self.length, self.seen = length, []  # type: ignore[var-annotated]

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.seen.append(input_ids)
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


def test_stopping_criteria_are_asked_for_every_token(target: Any, draft: Any, words: Any) -> None:
    inputs = words(PROMPT, return_tensors="pt", return_token_type_ids=False)
    length = inputs.input_ids.shape[1] + 9
    criteria = StopAt(length)
    fast = target.generate(
        **inputs,
        max_new_tokens=40,
        do_sample=False,
        stopping_criteria=StoppingCriteriaList([criteria]),
        draft_model=draft,
        custom_generate=ouroboros.custom_generate,
    )
    assert fast.shape[1] == length
    for seen, end in zip(criteria.seen, range(length - 8, length + 1), strict=True):
        assert torch.equal(seen, fast[:, :end]), "and keeps what it has seen"
    stop = StoppingCriteriaList([StopStringCriteria(words, ["return"])])  # stop_strings= never reaches a callable
    settings = {**inputs, "max_new_tokens": 60, "do_sample": False, "stopping_criteria": stop}
    stopped = target.generate(**settings, draft_model=draft, custom_generate=ouroboros.custom_generate)
    assert stopped.tolist() == target.generate(**settings).tolist()


def test_a_users_processor(target: Any, draft: Any, words: Any) -> None:
    inputs = words(PROMPT, return_tensors="pt", return_token_type_ids=False)
    own = LogitsProcessorList([NoRepeatNGramLogitsProcessor(2)])
    settings = {"max_new_tokens": 30, "do_sample": False, "logits_processor": own}
    fast = target.generate(**inputs, **settings, draft_model=draft, custom_generate=ouroboros.custom_generate)
    assert fast.tolist() == target.generate(**inputs, **settings).tolist()


def test_sampling_is_seeded_by_torch_and_right_in_distribution(words: Any) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=7, n_positions=32, n_embd=16, n_layer=1, n_head=2, eos_token_id=None))
    model = model.eval()
    draft = GPT2LMHeadModel(GPT2Config(vocab_size=7, n_positions=32, n_embd=8, n_layer=1, n_head=2, eos_token_id=None))
    settings = {"max_new_tokens": 2, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "pad_token_id": 0}
    ids = torch.tensor([[1, 2, 3]])

    def draw(count: int) -> Any:
        batch = ids.expand(count, -1)
        own = {"draft_model": draft.eval(), "custom_generate": ouroboros.custom_generate}
        return model.generate(batch, attention_mask=torch.ones_like(batch), **settings, **own)[:, 3:]

    torch.manual_seed(5)
    first = draw(3)
    torch.manual_seed(5)
    assert draw(3).tolist() == first.tolist()
    drawn = draw(600)
    seen = torch.zeros(7, 7)
    for a, b in drawn.tolist():
        seen[a, b] += 1
    batch = ids.expand(20_000, -1)
    plain = model.generate(batch, attention_mask=torch.ones_like(batch), **settings)[:, 3:]
    expected = torch.zeros(7, 7)
    for a, b in plain.tolist():
        expected[a, b] += 1
    likely = expected > 200
    totals, wanted = seen[likely].double(), expected[likely].double() * 600 / 20_000
    totals[-1] += seen[~likely].sum()  # what is rare goes to one of the cells
    wanted[-1] += 600 - wanted.sum()
    assert chisquare(totals.numpy(), wanted.numpy()).pvalue > 0.001


def test_streamers_end(target: Any, draft: Any, words: Any) -> None:
    inputs = words(PROMPT, return_tensors="pt", return_token_type_ids=False)
    plain = target.generate(**inputs, max_new_tokens=20, do_sample=False)
    text = words.decode(plain[0, inputs.input_ids.shape[1] :])
    for route in ("callable", "folder"):
        streamer = TextIteratorStreamer(words, skip_prompt=route == "folder", timeout=60)
        own: dict[str, Any] = {"token_streamer": streamer, "custom_generate": ouroboros.custom_generate}
        if route == "folder":
            own = {"streamer": streamer, "custom_generate": str(REPOSITORY), "trust_remote_code": True}
        settings = {**inputs, "max_new_tokens": 20, "do_sample": False, "draft_model": draft, **own}
        if route == "folder":
            settings["assistant_model"] = settings.pop("draft_model")
        thread = threading.Thread(target=target.generate, kwargs=settings)
        thread.start()
        assert "".join(streamer) == text
        thread.join(60)


@pytest.mark.parametrize(
    ("settings", "words_of_error"),
    [
        ({"num_beams": 2}, "num_beams must be 1"),
        ({"method": "speculative"}, "needs a draft_model"),
        ({"method": "medusa"}, "method must be one of"),
        ({"method": "prompt_lookup", "method_options": {"nonsense": 1}}, "no option 'nonsense'"),
        ({"phrase_pool": 3}, "phrase_pool must be"),
        ({"return_dict_in_generate": True, "output_hidden_states": True}, "output_hidden_states must be False"),
    ],
)
def test_what_is_refused(target: Any, words: Any, settings: dict[str, Any], words_of_error: str) -> None:
    inputs = words(PROMPT, return_tensors="pt", return_token_type_ids=False)
    with pytest.raises(InputError, match=words_of_error):
        target.generate(**inputs, max_new_tokens=4, custom_generate=ouroboros.custom_generate, **settings)
