"""What requests share: caches from turn to turn, the prefill of several samples; chat messages as prompts."""

from __future__ import annotations

from typing import Any

import pytest

import ouroboros
from ouroboros import Decoder, InputError, OuroborosError, OuroborosOptions, SamplingParams
from ouroboros.config import options_for
from ouroboros.models.base import ScoreRequest
from ouroboros.models.context import Context
from ouroboros.phrases.memory import Memory
from ouroboros.text import Tokenizer
from ouroboros.tree import Origin, TokenTree
from tests.pairs import EMBEDDED, Pair
from tests.reference import generate

PROMPT = [5, 9, 2, 7, 1, 3]


@pytest.fixture
def decoder(tiny: Pair) -> Decoder:
    return Decoder(tiny.target, tiny.drafts["similar"], None, "ouroboros", OuroborosOptions(), Memory())


def truth(pair: Pair, prompt: list[int], new: int, seed: int = 0, temperature: float = 0.0) -> tuple[int, ...]:
    return generate(pair.oracle, prompt, SamplingParams(max_new_tokens=new, temperature=temperature), seed)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("method", ["autoregressive", "speculative", "lookahead", "ouroboros"])
def test_turns_compute_only_what_is_new(tiny: Pair, method: str, temperature: float) -> None:
    draft = tiny.drafts["similar"] if method in ("speculative", "ouroboros") else None
    session = Decoder(tiny.target, draft, None, method, options_for(method), Memory()).session()
    sequence: list[int] = []
    for turn in range(4):
        prompt = [*sequence, *PROMPT, turn]
        result = session.generate(prompt, max_new_tokens=15, temperature=temperature, seed=turn)
        assert result.token_ids == truth(tiny, prompt, 15, turn, temperature)
        assert result.stats.cached_tokens >= max(0, len(sequence) - 1)
        sequence = [*prompt, *result.token_ids]


def test_a_turn_that_goes_back(tiny: Pair, decoder: Decoder) -> None:
    session = decoder.session()
    session.generate([*PROMPT, 8, 8, 8], max_new_tokens=10)
    other = [*PROMPT, 9]
    result = session.generate(other, max_new_tokens=10)
    assert result.stats.cached_tokens == len(PROMPT)
    assert result.token_ids == truth(tiny, other, 10)
    assert session.generate([1], max_new_tokens=5).stats.cached_tokens == 0
    again = session.generate([1], max_new_tokens=5)  # nothing is left to prefill but nothing is there to reuse either
    assert again.token_ids == truth(tiny, [1], 5)


def test_a_stream_that_is_closed_or_stops_early_leaves_a_sound_cache(tiny: Pair, decoder: Decoder) -> None:
    session = decoder.session()
    stream = session.stream(PROMPT, max_new_tokens=40)
    first = next(stream).token_ids
    with pytest.raises(OuroborosError, match="has not ended"):
        session.generate(PROMPT)
    stream.close()
    prompt = [*PROMPT, *first, 4]
    result = session.generate(prompt, max_new_tokens=10)
    assert result.token_ids == truth(tiny, prompt, 10)
    assert result.stats.cached_tokens >= len(PROMPT)


def test_a_failed_forward_is_not_built_upon(tiny: Pair, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    session = decoder.session()
    session.generate(PROMPT, max_new_tokens=5)

    def fail(requests: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(tiny.target, "score", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            session.generate(PROMPT, max_new_tokens=5)
    result = session.generate(PROMPT, max_new_tokens=5)
    assert result.stats.cached_tokens == 0
    assert result.token_ids == truth(tiny, PROMPT, 5)


def test_requests_without_a_session_share_nothing(decoder: Decoder) -> None:
    assert [decoder.generate(PROMPT, max_new_tokens=5).stats.cached_tokens for _ in range(2)] == [0, 0]


def test_samples_share_the_prefill_and_the_pool(tiny: Pair) -> None:
    decoder = Decoder(tiny.target, tiny.drafts["similar"], None, "ouroboros", OuroborosOptions(), None)
    results = decoder.generate(PROMPT, n=4, temperature=1.0, seed=7, max_new_tokens=20)
    assert [result.stats.seed for result in results] == [7, 8, 9, 10]
    assert len({result.token_ids for result in results}) == 4
    for result in results:
        assert result.token_ids == truth(tiny, PROMPT, 20, result.stats.seed, 1.0)
    assert [result.stats.cached_tokens for result in results] == [0, 5, 5, 5]
    fixed = Decoder(tiny.target, tiny.drafts["similar"], None, "ouroboros", OuroborosOptions(control=False), None)
    *_, last = fixed.generate(PROMPT, n=10, temperature=1.0, seed=7, max_new_tokens=20)
    cold = fixed.generate(PROMPT, temperature=1.0, seed=16, max_new_tokens=20)
    assert last.token_ids == cold.token_ids
    phrases, before = (one.stats.draft_tokens_by_source.get("phrase", 0) for one in (last, cold))
    assert phrases > before  # eight are decoded at once: the first ones' text is known


def test_shapes_of_the_answers(decoder: Decoder) -> None:
    both = decoder.generate([PROMPT, [1, 2]], n=2, max_new_tokens=3, temperature=1.0)
    assert [len(samples) for samples in both] == [2, 2]
    assert len({r.stats.seed for samples in both for r in samples}) == 4
    (only,) = decoder.generate([PROMPT], max_new_tokens=3)
    assert only.token_ids == decoder.generate(PROMPT, max_new_tokens=3).token_ids
    edge = decoder.generate(PROMPT, n=2, max_new_tokens=2, temperature=1.0, seed=2**63 - 1)
    assert [r.stats.seed for r in edge] == [2**63 - 1, 0]
    with pytest.raises(InputError, match="n must be 1 for a single stream, not 2"):
        decoder.stream(PROMPT, n=2)
    with pytest.raises(InputError, match="n must be a whole number of at least 1, not 0"):
        decoder.generate(PROMPT, n=0)


def test_a_draft_that_followed_a_wrong_guess_finds_back(tiny: Pair) -> None:
    """A drafter may have been shown tokens that were not taken (text that a grammar seemed to force)."""
    context = Context(tiny.drafts["similar"])
    context.prefill(PROMPT)
    guess, real = [*PROMPT, 11, 12, 13], [*PROMPT, 11, 20, 21]
    model = context.model
    missing = context.follow(guess)
    tree = TokenTree(13)
    tree.extend(0, [1, 2], Origin.DRAFT)
    model.score([ScoreRequest(context.slot, tree, None, missing)])
    missing = context.follow(real)
    assert context.slot.length == len(PROMPT) + 1
    assert list(missing) == [20]
    root = TokenTree(21)
    logits = model.score([ScoreRequest(context.slot, root, None, missing)])[0]
    fresh = Context(model)
    fresh.prefill(real)
    assert (logits - model.score([ScoreRequest(fresh.slot, root)])[0]).abs().max() < 1e-9


MESSAGES = [{"role": "user", "content": "def add(a, b):"}]
TEMPLATE = (
    "{% for m in messages %}# {{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}# assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def talker() -> Decoder:
    words = Tokenizer.from_directory(EMBEDDED / "target")
    assert words is not None
    words.hf.chat_template = "{% if not messages[0].role %}{{ raise_exception('no role') }}{% endif %}" + TEMPLATE
    return ouroboros.load(EMBEDDED / "target", EMBEDDED / "draft", tokenizer=words, dtype="float32")


def test_messages_are_prompts(talker: Decoder) -> None:
    result = talker.generate(MESSAGES, max_new_tokens=12)
    text = "# user\ndef add(a, b):\n# assistant\n"
    assert talker.tokenizer is not None
    assert talker.tokenizer.decode(result.prompt_token_ids) == text
    assert result.token_ids == talker.generate(text, max_new_tokens=12).token_ids
    both = talker.generate([MESSAGES, MESSAGES], max_new_tokens=12)
    assert [r.token_ids for r in both] == [result.token_ids] * 2


def test_turns_of_a_chat(talker: Decoder) -> None:
    session = talker.session()
    messages = list(MESSAGES)
    lengths = [0]
    for question in ("def sub(a, b):", "def mul(a, b):"):
        result = session.generate(messages, max_new_tokens=20, ignore_eos=True)
        assert result.token_ids == talker.generate(messages, max_new_tokens=20, ignore_eos=True).token_ids
        assert result.stats.cached_tokens >= lengths[-1] * 0.8
        lengths.append(len(result.prompt_token_ids))
        messages += [{"role": "assistant", "content": result.text or ""}, {"role": "user", "content": question}]


def test_messages_that_cannot_be_prompts(decoder: Decoder, talker: Decoder) -> None:
    with pytest.raises(InputError, match="messages need a tokenizer, and this model has none"):
        decoder.generate(MESSAGES)
    plain = ouroboros.load(EMBEDDED / "target", method="lookahead")
    assert plain.tokenizer is not None
    plain.tokenizer.hf.chat_template = None
    with pytest.raises(InputError, match="messages need a tokenizer with a chat template"):
        plain.generate(MESSAGES)
    with pytest.raises(InputError, match="a list of token ids or of messages"):
        talker.generate([1, {"role": "user"}])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the chat template does not take these messages"):
        talker.generate([{"nothing": 1}], max_new_tokens=1)
