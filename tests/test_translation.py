"""Pairs whose tokenizers differ: the wrapper keeps the protocol, the tables are right, the output is exact."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, decoders, normalizers
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import ouroboros
from ouroboros.config import SamplingParams
from ouroboros.errors import LoadError
from ouroboros.models.base import CausalModel, ScoreRequest, Slot
from ouroboros.models.transformers import wrap_module
from ouroboros.models.translated import NEVER, TranslatedModel
from ouroboros.text import Tokenizer
from ouroboros.translation import MIN_COVERAGE, PROBE, Lexicon, translate
from ouroboros.tree import Origin, TokenTree
from tests.pairs import EMBEDDED, Pair, native, random_weights, tiny_config
from tests.reference import NaiveLlama, generate
from tests.vocabularies import embedded_tokenizer, fewer_merges, renumbered

# --- the model of another vocabulary ----------------------------------------------------------------------------------

TARGET, DRAFT = 30, 40  # tokens
LENGTHS = random.Random(0)
SPELLINGS = [
    (t + 5,) if t < 18 else tuple(LENGTHS.choices(range(5, 12), k=LENGTHS.randint(2, 4))) for t in range(TARGET)
]
PARTNERS = [t + 5 if t < 18 else -1 for t in range(TARGET)]
PREFIX = (3,)


class Checked:
    """A draft model that asserts that its context is never left."""

    def __init__(self, model: CausalModel, limit: int) -> None:
        self.model = model
        self.info = dataclasses.replace(model.info, max_positions=limit)
        self.open = model.open
        self.rows = 0

    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        assert slot.length + len(token_ids) <= self.info.max_positions
        self.model.prefill(slot, token_ids)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        (request,) = requests
        depth = max(request.tree.depths)
        assert request.slot.length + len(request.catch_up) + depth < self.info.max_positions
        self.rows += len(request.catch_up) + len(request.tree) - request.slot.pending
        return self.model.score(requests)


def inner_model(backend: str) -> tuple[CausalModel, Callable[[Sequence[int]], Tensor]]:
    """A tiny fp64 model, and its logits behind a text, computed without the library's own code."""
    if backend == "native":
        config = tiny_config(DRAFT)
        weights = random_weights(config, 7)
        return native(config, weights, torch.float64), NaiveLlama(config, weights, torch.float64).logits
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": DRAFT, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    if backend == "gpt2":
        module: Any = GPT2LMHeadModel(GPT2Config(**sizes, n_embd=16, n_positions=512))
    else:
        module = BloomForCausalLM(BloomConfig(**sizes, hidden_size=16))
    module = module.double().eval()

    def logits(ids: Sequence[int]) -> Tensor:
        with torch.no_grad():
            answer: Tensor = module(torch.tensor([list(ids)])).logits[0, -1]
        return answer

    return wrap_module(module, "auto", "auto"), logits


def written(tokens: Sequence[int]) -> list[int]:
    ids = [d for t in tokens for d in SPELLINGS[t]]
    return ids if tokens and SPELLINGS[tokens[0]] == PREFIX else [*PREFIX, *ids]


@pytest.mark.parametrize("limit", [48, 512])
@pytest.mark.parametrize("backend", ["native", "gpt2", "bloom"])
def test_every_answer_is_the_draft_models_own(backend: str, limit: int) -> None:
    """Random lives of a slot. Each row is the inner model's row behind the same text, spelt out."""
    inner, logits = inner_model(backend)
    checked = Checked(inner, limit)
    model = TranslatedModel(checked, SPELLINGS, PARTNERS, PREFIX)
    assert (model.info.vocab_size, model.info.trees) == (TARGET, backend != "bloom")
    close = 1e-4 if backend == "bloom" else 1e-9  # its softmax is in fp32
    moved = 0
    for seed in range(12):
        rng = random.Random(seed)
        slot = model.open()
        committed = rng.choices(range(TARGET), k=rng.choice([0, 0, 5, 30]))
        model.prefill(slot, committed)
        for _ in range(10):
            catch_up = rng.choices(range(TARGET), k=rng.choice([0, 0, 1, 3]))
            committed += catch_up
            tree = TokenTree(rng.randrange(TARGET))
            for _ in range(rng.randint(1, 3)):
                first = slot.pending
                for _ in range(rng.randint(1 if first else 0, 4)):
                    parent = len(tree) - 1 if backend == "bloom" else rng.randrange(len(tree))
                    if tree.depths[parent] < 2:
                        tree.add(parent, rng.randrange(TARGET), Origin.DRAFT)
                if len(tree) == first:
                    continue
                rows = (
                    None
                    if rng.random() < 0.3
                    else rng.sample(range(first, len(tree)), rng.randint(1, len(tree) - first))
                )
                (answer,) = model.score([ScoreRequest(slot, tree, rows, catch_up)])
                catch_up = []
                assert (slot.length, slot.pending) == (len(committed), len(tree))
                for row, node in zip(answer, range(first, len(tree)) if rows is None else rows, strict=True):
                    text = written([*committed, tree.tokens[0], *tree.path_tokens(node)])[slot.skipped :]
                    expected = logits(text)
                    for token, partner in enumerate(PARTNERS):
                        wanted = NEVER if partner < 0 else float(expected[partner])
                        assert abs(float(row[token]) - wanted) < close
                if rng.random() < 0.4:
                    left = rng.randint(1, len(tree))
                    tree.truncate(left)
                    slot.truncate(left)
                    assert slot.pending == left
            path = tree.path(rng.randrange(slot.pending))[: rng.choice([0, 1, 9])]
            slot.commit(path)
            committed += [tree.tokens[node] for node in path]
            assert (slot.length, slot.pending) == (len(committed), 0)
            if rng.random() < 0.15:
                committed = committed[: rng.randint(0, len(committed))]
                slot.rewind(len(committed))
                assert slot.length == len(committed)
            moved += slot.skipped > 0
    assert (moved > 0) == (limit == 48)


def test_a_text_that_begins_with_the_prefix_gets_no_second_one() -> None:
    inner, _ = inner_model("native")
    spellings = [PREFIX, *SPELLINGS[1:]]
    model = TranslatedModel(inner, spellings, PARTNERS, PREFIX)
    for prompt, text in (([0, 1], [3, 6]), ([1, 0], [3, 6, 3]), ([0], [3])):
        slot = model.open()
        model.prefill(slot, prompt)
        assert slot.text == text
        slot.rewind(0)
        model.score([ScoreRequest(slot, TokenTree(prompt[0]))])
        assert [*slot.text, *slot.tree.tokens] == written_with(spellings, prompt[:1])


def written_with(spellings: Sequence[tuple[int, ...]], tokens: Sequence[int]) -> list[int]:
    ids = [d for t in tokens for d in spellings[t]]
    return ids if tuple(ids[:1]) == PREFIX else [*PREFIX, *ids]


def test_what_is_spelt_is_computed_once() -> None:
    """Equal beginnings of spellings are one node, and a committed path is kept."""
    inner, _ = inner_model("native")
    checked = Checked(inner, 512)
    model = TranslatedModel(checked, [(5,), (6,), (5, 6), (5, 7)], [5, 6, -1, -1])
    slot = model.open()
    model.prefill(slot, [0, 1])
    tree = TokenTree(1)
    for token in (0, 2, 3):
        tree.add(0, token, Origin.DRAFT)
    tree.add(1, 1, Origin.DRAFT)  # 5 6 once more
    model.score([ScoreRequest(slot, tree)])
    assert (checked.rows, slot.tree.tokens) == (4, [6, 5, 6, 7])
    assert slot.ends == [0, 1, 2, 3, 2]
    slot.commit([0, 2])
    assert (slot.length, slot.inner.length, slot.text) == (4, 5, [5, 6, 6, 5, 6])
    model.score([ScoreRequest(slot, TokenTree(3))])
    assert checked.rows == 6
    slot.rewind(3)
    assert (slot.length, slot.inner.length, slot.text) == (3, 3, [5, 6, 6])


def test_nothing_is_computed_where_nothing_is_asked() -> None:
    inner, _ = inner_model("native")
    model = TranslatedModel(inner, [(5,), (6,), (5, 6)], [5, 6, -1])
    slot = model.open()
    tree = TokenTree(1)
    tree.add(0, 2, Origin.DRAFT)
    assert model.score([ScoreRequest(slot, tree, [])])[0].shape == (0, 3)
    tree.add(0, 0, Origin.DRAFT)
    assert model.score([ScoreRequest(slot, tree, [])])[0].shape == (0, 3)
    assert (slot.pending, slot.inner.pending) == (3, 3)
    with pytest.raises(AssertionError, match="new nodes"):
        model.score([ScoreRequest(slot, tree)])


def test_slots_of_other_models() -> None:
    inner, _ = inner_model("native")
    model = TranslatedModel(inner, SPELLINGS, PARTNERS)
    with pytest.raises(AssertionError, match="belongs"):
        model.prefill(inner.open(), [1])
    slots = [model.open(), model.open()]
    both = model.score([ScoreRequest(slot, TokenTree(root)) for slot, root in zip(slots, (4, 20), strict=True)])
    for root, answer in zip((4, 20), both, strict=True):
        torch.testing.assert_close(answer, model.score([ScoreRequest(model.open(), TokenTree(root))])[0])


# --- the tables -------------------------------------------------------------------------------------------------------


def wrapped(settings: Mapping[str, Any] | RawTokenizer, **names: str) -> Tokenizer:
    raw = settings if isinstance(settings, RawTokenizer) else RawTokenizer.from_str(json.dumps(settings))
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=raw, **names))


def byte_level(size: int = 8192, eos: str = "<|endoftext|>") -> Tokenizer:
    """The embedded tokenizer with its first ``size`` tokens."""
    settings = embedded_tokenizer()
    model = settings["model"]
    model["vocab"] = {t: i for t, i in model["vocab"].items() if 0 < i < size} | {eos: 0}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    settings["added_tokens"][0]["content"] = eos
    return wrapped(settings, eos_token=eos)


def sentencepiece(bos: bool = True) -> Tokenizer:
    """The embedded tokens that are ASCII text, as a sentencepiece vocabulary writes them, with byte fallback."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = []
    lexicon = Lexicon(byte_level())
    known = {"▁", *(chr(c) for c in range(33, 127))}
    for first, second in embedded_tokenizer()["model"]["merges"]:
        parts = [b"".join(lexicon.texts[lexicon.vocab[c]] for c in part) for part in (first, second)]
        left, right = (part.decode(errors="replace").replace(" ", "▁") for part in parts)
        if left in known and right in known and "\n" not in left + right:
            known.add(left + right)
            merges.append((left, right))
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *sorted(known)])}
    raw = RawTokenizer(BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    if bos:
        raw.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return wrapped(raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


VOCABULARIES: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "fewer merges": lambda: byte_level(4096),
    "another EOS": lambda: byte_level(6000, "<end>"),
    "sentencepiece": sentencepiece,
}


@pytest.mark.parametrize("draft", VOCABULARIES)
@pytest.mark.parametrize("target", VOCABULARIES)
def test_every_token_is_spelt_to_the_byte(target: str, draft: str) -> None:
    """Also tokens that hold a part of a character, or several characters of several bytes."""
    one, other = VOCABULARIES[target](), VOCABULARIES[draft]()
    source, into = Lexicon(one), Lexicon(other)
    found = translate(one, other, one.vocab_size + 7, frozenset())
    parts = 0
    for token, text in source.texts.items():
        assert b"".join(into.texts[d] for d in found.spellings[token]) == text
        if (partner := found.partners[token]) >= 0:
            assert found.spellings[token] == (partner,)
        parts += "\ufffd" in text.decode(errors="replace")
    assert parts > 100
    joined = [d for d in found.partners if d >= 0]
    assert len(set(joined)) == len(joined)
    assert all(found.spellings[-7:])  # rows of the target's matrix that are no tokens
    ends = one.eos_token_id, other.eos_token_id
    assert ends[0] is not None
    assert found.partners[ends[0]] == ends[1]
    assert found.prefix == ((1,) if draft == "sentencepiece" else ())
    shared = source.ids.keys() & into.ids.keys()
    assert all(found.partners[source.ids[text]] == into.ids[text] for text in shared)
    assert MIN_COVERAGE <= found.coverage <= 1
    if draft in (target, "byte-level"):
        assert found.coverage == 1


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_text_in_other_tokens_is_the_same_text(name: str) -> None:
    words = VOCABULARIES[name]()
    found = translate(byte_level(), words, 8192, frozenset({0}))
    lexicon = Lexicon(words)
    for text in (PROBE, " naïve 🙂 漢字\n\tx", "é"):
        ids = [d for t in byte_level().encode(text) for d in found.spellings[t]]
        assert b"".join(lexicon.texts[d] for d in ids).decode() == text


def test_special_tokens_by_name_and_by_role() -> None:
    def chat(specials: Sequence[str], **names: str) -> Tokenizer:
        words = byte_level()
        words.hf.add_special_tokens({"additional_special_tokens": list(specials)} | names)
        return Tokenizer(words.hf)

    target = chat(["<|user|>", "<|tool|>"], eos_token="<|end of turn|>", bos_token="<|begin|>")
    draft = chat(["<|user|>"], eos_token="<|im_end|>")
    ids, other = (words.hf.convert_tokens_to_ids for words in (target, draft))
    found = translate(target, draft, target.vocab_size, frozenset({ids("<|end of turn|>"), 0}))
    assert found.partners[ids("<|user|>")] == other("<|user|>")
    assert found.partners[ids("<|end of turn|>")] == other("<|im_end|>")
    assert found.partners[0] == 0  # <|endoftext|>, in both
    assert found.spellings[ids("<|begin|>")] == (other("<|im_end|>"),)  # a beginning without a counterpart
    text = Lexicon(draft).spell(b"<|tool|>")
    assert (found.partners[ids("<|tool|>")], found.spellings[ids("<|tool|>")]) == (-1, text)


def test_the_models_ends_where_the_tokenizers_name_none() -> None:
    settings = embedded_tokenizer()
    settings["added_tokens"].append(settings["added_tokens"][0] | {"id": 8192, "content": "<end>"})
    target, draft = wrapped(settings), wrapped(settings)
    found = translate(target, draft, 8200, frozenset({0, 8195}), frozenset({8192}))
    assert found.partners[8192] == 8192
    assert found.partners[0] == 0
    found = translate(wrapped(embedded_tokenizer()), draft, 8200, frozenset({8195}), frozenset({8192}))
    assert found.partners[8195] == 8192


# --- pairs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("drafts")
    return {
        "renumbered": renumbered(root / "renumbered"),
        "fewer merges": fewer_merges(root / "fewer", 4096),
        "hardly any merges": fewer_merges(root / "hardly any", 400),
    }


PROMPTS = ['def area(r):\n    """The area of a circle', "# Übung: naïve 漢字\nclass Stack:\n    def push("]
WARPS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0},
    "penalised": {"temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.1, "presence_penalty": 0.2},
}


@pytest.mark.parametrize("backend", ["native", "transformers"])
@pytest.mark.parametrize("method", ["speculative", "ouroboros"])
def test_other_numbers_for_the_same_tokens_change_no_count(
    drafts: Mapping[str, Path], method: str, backend: str
) -> None:
    settings: dict[str, Any] = {"method": method, "backend": backend, "dtype": "float64", "pool": False}
    settings["options"] = {"control": False} if method == "ouroboros" else None  # sizes that no clock chooses
    plain = ouroboros.load(EMBEDDED / "target", EMBEDDED / "draft", **settings)
    other = ouroboros.load(EMBEDDED / "target", drafts["renumbered"], **settings)
    assert isinstance(other.draft, TranslatedModel)
    for warp in WARPS.values() if backend == "native" else [WARPS["penalised"]]:
        for seed, prompt in enumerate(PROMPTS):
            one, two = (d.generate(prompt, max_new_tokens=24, seed=seed, **warp) for d in (plain, other))
            assert one.token_ids == two.token_ids
            for count in ("target_forwards", "draft_forwards", "draft_tokens", "accepted_tokens", "accepted_by_source"):
                assert getattr(one.stats, count) == getattr(two.stats, count), count
            assert one.stats.accepted_by_source["draft"] > 0


@pytest.mark.parametrize("warp", WARPS)
def test_other_merges_are_lossless(embedded: Pair, drafts: Mapping[str, Path], warp: str) -> None:
    decoders = [
        ouroboros.load(EMBEDDED / "target", drafts["fewer merges"], method=method, dtype="float32", options=options)
        for method, options in (("speculative", None), ("ouroboros", {"control": False}))
    ]
    for seed, prompt in enumerate(PROMPTS):
        params = SamplingParams(max_new_tokens=24, ignore_eos=True, **WARPS[warp])
        words = decoders[0].tokenizer
        assert words is not None
        expected = generate(embedded.oracle, words.encode(prompt), params, seed)
        for decoder in decoders:
            result = decoder.generate(prompt, dataclasses.replace(params, seed=seed))
            assert result.token_ids == expected
            stats = result.stats
            assert stats.accepted_by_source["draft"] > 2
            assert stats.target_forwards < 24
            assert stats.accepted_tokens < stats.draft_tokens


def test_long_texts_move_the_draft_models_context(drafts: Mapping[str, Path], tmp_path: Path) -> None:
    short = with_context(drafts["fewer merges"], tmp_path / "short", 64)
    plain = ouroboros.load(EMBEDDED / "target", method="autoregressive")
    decoder = ouroboros.load(EMBEDDED / "target", short, method="speculative")
    prompt = PROMPTS[0] * 6
    result = decoder.generate(prompt, max_new_tokens=100, ignore_eos=True)
    assert len(result.prompt_token_ids) > 64
    assert result.token_ids == plain.generate(prompt, max_new_tokens=100, ignore_eos=True).token_ids
    assert result.stats.tokens_per_target_forward > 2


def with_context(draft: Path, path: Path, size: int) -> Path:
    path.mkdir()
    for file in draft.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": size}))
    return path


@pytest.mark.parametrize("method", ["speculative", "ouroboros"])
def test_the_drafts_own_end_of_text(drafts: Mapping[str, Path], method: str) -> None:
    """The draft model writes its own EOS, which is the target's: it is accepted, and nothing is drafted behind it."""
    plain = ouroboros.load(method="autoregressive")
    options = {"control": False} if method == "ouroboros" else None
    decoder = ouroboros.load(EMBEDDED / "target", drafts["renumbered"], method=method, options=options)
    prompt = PROMPTS[0]
    expected = plain.generate(prompt, max_new_tokens=8, logit_bias={0: 30.0})
    result = decoder.generate(prompt, max_new_tokens=8, logit_bias={0: 30.0})
    assert result.token_ids == expected.token_ids == (0,)
    assert result.finish_reason == "stop"
    assert result.stats.accepted_by_source == {"draft": 1}
    assert result.stats.draft_forwards == 1


def test_a_draft_that_begins_texts_with_a_token_of_its_own() -> None:
    assert Lexicon(sentencepiece()).prefix == (1,)
    assert Lexicon(sentencepiece(bos=False)).prefix == ()


# --- refusals ---------------------------------------------------------------------------------------------------------


def refusal(target: Path, draft: Path) -> str:
    with pytest.raises(LoadError) as caught:
        ouroboros.load(target, draft)
    assert "\n" not in str(caught.value)
    assert repr(str(draft)) in str(caught.value)
    return str(caught.value)


def test_too_little_in_common_is_refused_with_the_figure(drafts: Mapping[str, Path]) -> None:
    message = refusal(EMBEDDED / "target", drafts["hardly any merges"])
    assert "another tokenizer than the target" in message
    assert "% of a probe text's tokens" in message
    assert f"{MIN_COVERAGE:.0%}" in message
    words, other = (Tokenizer.wrap(path) for path in (EMBEDDED / "target", drafts["hardly any merges"]))
    with pytest.raises(LoadError, match=r"only 6\d% of"):
        translate(words, other, 8192, frozenset())


def test_tokens_that_are_no_bytes_are_refused(drafts: Mapping[str, Path], tmp_path: Path) -> None:
    raw = RawTokenizer(WordLevel({"def": 0, "class": 1}, unk_token="def"))
    raw.pre_tokenizer = WhitespaceSplit()
    path = tmp_path / "words"
    path.mkdir()
    for name in ("config.json", "model.safetensors"):
        (path / name).write_bytes((drafts["fewer merges"] / name).read_bytes())
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(path)
    assert "the draft's tokens do not spell a text byte by byte" in refusal(EMBEDDED / "target", path)
    assert "the target's tokens do not spell a text byte by byte" in refusal(path, EMBEDDED / "draft")


def test_a_draft_without_a_tokenizer_must_be_of_the_same_size(drafts: Mapping[str, Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((drafts["fewer merges"] / name).read_bytes())
    message = refusal(EMBEDDED / "target", bare)
    assert "4096 tokens, the target 8192" in message
    assert "without both tokenizers" in message
