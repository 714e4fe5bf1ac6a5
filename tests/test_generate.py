"""The library's face: prompts, streams, stop strings, seeds, stats, pools that live on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ouroboros
from ouroboros import Decoder, InputError, OuroborosError, OuroborosOptions, SamplingParams
from ouroboros.stats import Stats, StatsRecorder
from ouroboros.tree import Origin, TokenTree
from tests.pairs import EMBEDDED, Pair

PROMPT = "def fibonacci(n):\n    "


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with ouroboros.load(dtype="float32") as decoder:
        yield decoder


def test_public_names() -> None:
    assert set(ouroboros.__all__) <= set(dir(ouroboros))
    for name in ouroboros.__all__:
        assert getattr(ouroboros, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = ouroboros.nonsense


def test_text_tokens_and_stats_belong_together(decoder: Decoder) -> None:
    result = decoder.generate(PROMPT, max_new_tokens=40, temperature=0.8, seed=3)
    assert decoder.tokenizer is not None
    assert result.text == decoder.tokenizer.decode(result.token_ids)
    assert list(result.prompt_token_ids) == decoder.tokenizer.encode(PROMPT)
    stats = result.stats
    assert stats.new_tokens == len(result.token_ids) <= 40
    assert stats.seed == 3
    assert (stats.method, stats.backend, stats.dtype, stats.device) == ("ouroboros", "native", "float32", "cpu")
    assert sum(stats.accepted_by_source.values()) == sum(stats.accepted_by_origin.values()) == stats.accepted_tokens
    assert sum(stats.accepted_by_depth) == stats.accepted_tokens
    assert sum(stats.draft_tokens_by_depth) == sum(stats.draft_tokens_by_source.values()) == stats.draft_tokens
    assert stats.new_tokens <= stats.accepted_tokens + stats.target_forwards
    assert stats.prefill_seconds > 0
    assert stats.draft_prefill_seconds >= 0  # the draft model may read the prompt later, or not
    assert stats.decode_seconds > stats.draft_seconds > 0
    values = json.loads(json.dumps(stats.to_dict()))
    for name in [
        "new_tokens",
        "target_forwards",
        "draft_forwards",
        "draft_tokens",
        "accepted_tokens",
        "acceptance_rate",
        "acceptance_rate_by_depth",
        "acceptance_rate_by_source",
        "tokens_per_target_forward",
        "accepted_by_source",
        "prefill_seconds",
        "draft_prefill_seconds",
        "decode_seconds",
        "tokens_per_second",
        "seed",
        "method",
        "backend",
        "dtype",
        "device",
    ]:
        assert name in values


def test_ratios_by_hand() -> None:
    recorder = StatsRecorder("m", "native", "float32", "cpu", 1, prompt_tokens=5)
    tree = TokenTree(1)
    phrase = tree.extend(0, [2, 3], Origin.DRAFT)
    tree.add(0, 4, Origin.PROMPT)
    tree.add(phrase, 5, Origin.VERIFIED)
    recorder.step(tree, (Origin.PROMPT, Origin.DRAFT, Origin.BONUS), 0.4, draft_forwards=3, draft_seconds=0.1)
    recorder.step(TokenTree(5), (), 0.1, draft_forwards=0, draft_seconds=0.0)
    stats = recorder.freeze()
    assert stats.new_tokens == 3
    assert stats.acceptance_rate == 2 / 4
    assert (stats.target_forwards, stats.plain_forwards) == (2, 1)
    assert stats.draft_tokens_by_origin == {"draft": 2, "prompt": 1, "verified": 1}
    assert stats.acceptance_rate_by_source == {"draft": 1 / 2, "phrase": 1 / 2}
    assert stats.acceptance_rate_by_depth == (1 / 2, 1.0, 0.0)
    assert stats.tokens_per_target_forward == 1.5
    assert stats.draft_forwards_per_token == 1.0
    assert stats.tokens_per_second == 6.0
    empty = StatsRecorder("m", "native", "float32", "cpu", 1, prompt_tokens=5).freeze()
    assert empty.acceptance_rate == empty.tokens_per_second == 0.0
    assert isinstance(empty, Stats)


def test_a_stream_is_the_result_in_pieces(decoder: Decoder) -> None:
    whole = decoder.generate(PROMPT, max_new_tokens=40, temperature=0.8, seed=3)
    with decoder.stream(PROMPT, max_new_tokens=40, temperature=0.8, seed=3) as stream:
        with pytest.raises(OuroborosError, match="not ended"):
            _ = stream.result
        chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == whole.text == stream.result.text
    assert tuple(itertools.chain(*(chunk.token_ids for chunk in chunks))) == whole.token_ids
    for chunk in chunks:
        assert len(chunk.sources) == len(chunk.token_ids)
        assert set(chunk.sources) <= {"draft", "phrase", "bonus"}
        assert "".join(text for text, _ in chunk.pieces) == chunk.text
        assert len(chunk.refused) == len(chunk.token_ids)
        assert not any(token in others for token, others in zip(chunk.token_ids, chunk.refused, strict=True))
    assert any(len(chunk.token_ids) > 1 for chunk in chunks)


@pytest.mark.parametrize("steps", [0, 1, 3, 8])
def test_a_closed_stream_has_the_text_of_its_tokens(decoder: Decoder, steps: int) -> None:
    """Also of those whose characters the stop matcher had held back."""
    tokenizer = decoder.tokenizer
    assert tokenizer is not None
    plain = Decoder(decoder.target, None, tokenizer, "autoregressive")  # a token a step
    text = plain.generate(PROMPT, max_new_tokens=60, ignore_eos=True).text or ""
    stream = plain.stream(PROMPT, max_new_tokens=60, ignore_eos=True, stop=[text[2:] + "and more"])
    seen = "".join(chunk.text for chunk, _ in zip(stream, range(steps), strict=False))
    stream.close()
    assert stream.result.text == tokenizer.decode(stream.result.token_ids)
    assert steps < 3 or len(seen) < len(stream.result.text or "")
    assert stream.result.finish_reason == "cancelled"
    stream.close()
    assert stream.result.text == tokenizer.decode(stream.result.token_ids)


def test_closing_a_stream_cancels_it(decoder: Decoder) -> None:
    stream = decoder.stream(PROMPT, max_new_tokens=1000, ignore_eos=True)
    first = next(stream)
    stream.close()
    assert list(stream) == []
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.token_ids == first.token_ids
    assert stream.result.text == first.text
    untouched = decoder.stream(PROMPT)
    untouched.close()
    assert untouched.result.token_ids == ()


@pytest.mark.parametrize("method", ouroboros.METHODS)
def test_stop_strings_cut_in_the_middle_of_a_block(method: str) -> None:
    decoder = ouroboros.load(method=method, dtype="float32")
    plain = decoder.generate(PROMPT, max_new_tokens=60, ignore_eos=True)
    assert plain.text is not None
    stop = plain.text[20:24]
    cut = plain.text.index(stop)
    result = decoder.generate(PROMPT, max_new_tokens=60, ignore_eos=True, stop=["never in it", stop])
    assert result.text == plain.text[:cut]
    assert result.finish_reason == "stop"
    assert plain.token_ids[: len(result.token_ids)] == result.token_ids
    assert decoder.tokenizer is not None
    assert stop in decoder.tokenizer.decode(result.token_ids)
    assert stop not in decoder.tokenizer.decode(result.token_ids[:-1])
    assert result.stats.new_tokens == len(result.token_ids)
    with decoder.stream(PROMPT, max_new_tokens=60, ignore_eos=True, stop=stop) as stream:
        assert "".join(chunk.text for chunk in stream) == result.text


def test_a_closing_eos_is_in_the_tokens_and_not_in_the_text() -> None:
    decoder = ouroboros.load(dtype="float32", method="speculative")
    plain = decoder.generate(PROMPT, max_new_tokens=30, ignore_eos=True)
    eos = plain.token_ids[12]
    end = plain.token_ids.index(eos) + 1
    object.__setattr__(decoder.target.info, "eos_token_ids", frozenset({eos, 8000}))
    result = decoder.generate(PROMPT, max_new_tokens=30)
    assert result.finish_reason == "stop"
    assert result.token_ids == plain.token_ids[:end]
    assert decoder.tokenizer is not None
    assert result.text == decoder.tokenizer.decode(result.token_ids[:-1])
    assert decoder.generate(PROMPT, max_new_tokens=30, ignore_eos=True).token_ids == plain.token_ids


def test_finish_reason_length(decoder: Decoder) -> None:
    result = decoder.generate(PROMPT, max_new_tokens=5, ignore_eos=True)
    assert (result.finish_reason, len(result.token_ids)) == ("length", 5)
    assert len(decoder.generate(PROMPT, max_new_tokens=1).token_ids) == 1


def test_the_end_of_the_context(decoder: Decoder) -> None:
    prompt = [5, 6, 7, 8] * 511  # 2,044 of 2,048 positions
    result = decoder.generate(prompt, max_new_tokens=50, ignore_eos=True)
    assert (result.finish_reason, len(result.token_ids)) == ("length", 4)
    with pytest.raises(InputError, match=r"2048 tokens; .* at most 2047"):
        decoder.generate([5] * 2048)
    assert len(decoder.generate([5] * 2047, ignore_eos=True).token_ids) == 1


def test_prompts_of_all_kinds(decoder: Decoder) -> None:
    assert decoder.tokenizer is not None
    ids = decoder.tokenizer.encode(PROMPT)
    text = decoder.generate(PROMPT, max_new_tokens=8)
    assert decoder.generate(ids, max_new_tokens=8).token_ids == text.token_ids
    tensor: Any = torch.tensor(ids)
    assert decoder.generate(tensor, max_new_tokens=8).token_ids == text.token_ids
    results = decoder.generate([PROMPT, ids, "import "], max_new_tokens=8)
    assert [result.token_ids for result in results[:2]] == [text.token_ids] * 2
    assert len(results) == 3
    assert decoder.generate([7], max_new_tokens=3).stats.prompt_tokens == 1


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "empty"),
        ([], "empty"),
        ([8192], "8192; allowed are 0 to 8191"),
        ([-1], "-1"),
        (3.5, "3.5"),
        (None, "None"),
        ([[1, 2], []], "empty"),
        ([1, "a"], "token ids"),
    ],
)
def test_bad_prompts(decoder: Decoder, prompt: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        decoder.generate(prompt)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -0.1}, "temperature must be .* not -0.1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, r"top_p must be a number above 0 and at most 1, not 0"),
        ({"top_p": 1.01}, "top_p"),
        ({"min_p": -1}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, not 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"seed": -1}, "seed"),
        ({"presence_penalty": float("inf")}, "presence_penalty"),
        ({"logit_bias": {-1: 2.0}}, "a token of logit_bias"),
        ({"logit_bias": {8192: 2.0}}, "8192; allowed are 0 to 8191"),
        ({"logit_bias": [3]}, "logit_bias must be a mapping"),
        ({"processors": [3]}, "processors must be callables, not 3"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": [3]}, "stop"),
        ({"temprature": 1}, "no such parameter: 'temprature'"),
        ({"params": {"temperature": 1}}, "SamplingParams"),
        ({"params": SamplingParams(), "seed": 1}, "not both"),
    ],
)
def test_bad_parameters(decoder: Decoder, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        decoder.generate(PROMPT, **settings)
    assert "\n" not in str(error.value)


def test_bad_options() -> None:
    wrong: list[tuple[Any, str]] = [
        ({"draft_tokens": 0}, "draft_tokens must be a whole number from 1 to 128, not 0"),
        ({"nonsense": 1}, "has no option 'nonsense'"),
        ({"lengthening": "maybe"}, "lengthening must be True or False, not 'maybe'"),
        ({"min_chance": 2.0}, "min_chance"),
        (ouroboros.SpeculativeOptions(), "OuroborosOptions"),
    ]
    for options, words in wrong:
        with pytest.raises(InputError, match=words):
            ouroboros.load(options=options)
    with pytest.raises(InputError, match="min_ngram must be at most"):
        ouroboros.PromptLookupOptions(min_ngram=4)
    with pytest.raises(InputError, match=r"method must be one of .*'medusa'"):
        ouroboros.load(method="medusa")


@pytest.mark.parametrize("method", ["autoregressive", "ouroboros"])
def test_logprobs_are_the_targets_own(method: str, embedded: Pair) -> None:
    decoder = ouroboros.load(method=method, dtype="float32")
    result = decoder.generate(PROMPT, max_new_tokens=12, temperature=0.8, seed=3, top_k=20, logprobs=3, ignore_eos=True)
    assert result.logprobs is not None
    assert len(result.logprobs) == 12
    text = list(result.prompt_token_ids)
    for token, entry in zip(result.token_ids, result.logprobs, strict=True):
        exact = embedded.oracle.logits(text).log_softmax(-1)
        assert entry.logprob == pytest.approx(exact[token].item(), abs=1e-4)
        assert [value for _, value in entry.top] == pytest.approx(exact.topk(3).values.tolist(), abs=1e-4)
        assert exact[[i for i, _ in entry.top]].tolist() == pytest.approx([value for _, value in entry.top], abs=1e-4)
        text.append(token)
    assert decoder.generate(PROMPT, max_new_tokens=3).logprobs is None
    own = decoder.generate(PROMPT, max_new_tokens=3, logprobs=0).logprobs
    assert own is not None
    assert own[0].top == ()


def test_seeds(decoder: Decoder) -> None:
    first = decoder.generate(PROMPT, max_new_tokens=20, temperature=1.0)
    again = decoder.generate(PROMPT, max_new_tokens=20, temperature=1.0, seed=first.stats.seed)
    other = decoder.generate(PROMPT, max_new_tokens=20, temperature=1.0)
    assert again.token_ids == first.token_ids
    assert other.stats.seed != first.stats.seed
    assert other.token_ids != first.token_ids


@pytest.mark.parametrize("method", ["ouroboros", "suffix_decoding", "token_recycling"])
def test_the_pool_lives_as_long_as_the_decoder_unless_it_is_off(method: str, tmp_path: Path) -> None:
    settings = SamplingParams(max_new_tokens=60, ignore_eos=True)
    options = {"control": False} if method == "ouroboros" else {}  # sizes that no clock chooses
    kept = ouroboros.load(dtype="float32", method=method, options=options)
    cold, warm = kept.generate(PROMPT, settings), kept.generate(PROMPT, settings)
    assert warm.token_ids == cold.token_ids
    assert warm.stats.target_forwards < cold.stats.target_forwards
    off = ouroboros.load(dtype="float32", method=method, options=options, pool=False)
    assert [off.generate(PROMPT, settings).stats.target_forwards for _ in range(2)] == [cold.stats.target_forwards] * 2

    path = tmp_path / "pool"
    with ouroboros.load(dtype="float32", method=method, options=options, pool=path) as first:
        first.generate(PROMPT, settings)
    before = path.read_bytes()
    with ouroboros.load(dtype="float32", method=method, options=options, pool=path, pool_read_only=True) as second:
        assert second.generate(PROMPT, settings).stats.target_forwards == warm.stats.target_forwards
    assert path.read_bytes() == before
    with ouroboros.load(dtype="float32", method=method, options=options, pool=path) as third:
        third.generate("import ", settings)
    assert len(path.read_bytes()) > len(before)


def test_options_reach_the_drafter() -> None:
    quiet = OuroborosOptions(control=False, tree_tokens=1, draft_tokens=1, window=0)
    decoder = ouroboros.load(dtype="float32", options=quiet)
    stats = decoder.generate(PROMPT, max_new_tokens=20, ignore_eos=True).stats
    assert stats.draft_tokens <= stats.target_forwards


def test_without_a_tokenizer(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(EMBEDDED / "target" / name)
    decoder = ouroboros.load(tmp_path, method="prompt_lookup", dtype="float32")
    result = decoder.generate([5, 6, 7], max_new_tokens=8)
    assert result.text is None
    assert len(result.token_ids) <= 8
    with decoder.stream([5, 6, 7], max_new_tokens=8) as stream:
        assert {chunk.text for chunk in stream} == {""}
    wrong: list[tuple[Any, dict[str, Any]]] = [(PROMPT, {}), ([5], {"stop": "x"})]
    for prompt, settings in wrong:
        with pytest.raises(InputError, match="tokenizer"):
            decoder.generate(prompt, **settings)


def test_a_pool_object_of_another_vocabulary_is_refused(tiny: Pair) -> None:
    pool = ouroboros.PhrasePool()
    pool.insert([1, 2], [39, 40], Origin.PROMPT)
    with pytest.raises(InputError, match="the PhrasePool holds the token id 40; allowed are 0 to 39"):
        ouroboros.load(tiny.target, method="lookahead", pool=pool)
    pool = ouroboros.PhrasePool()
    first = ouroboros.load(tiny.target, method="lookahead", pool=pool)
    first.generate([3, 1, 4], max_new_tokens=8)
    assert len(pool) > 0
    assert ouroboros.load(tiny.target, method="lookahead", pool=pool).pool is pool
    with pytest.raises(InputError, match="the PhrasePool belongs to another vocabulary"):
        ouroboros.load(EMBEDDED / "target", method="lookahead", pool=pool)
