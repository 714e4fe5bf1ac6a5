"""Everything that ``generate`` can hand over is honoured, refused by its name, or known to be without meaning."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList, StopStringCriteria
from transformers.generation.utils import GenerationMixin

import ouroboros
from ouroboros import InputError
from ouroboros.integrations.arguments import REFUSED, WITHOUT_MEANING
from ouroboros.integrations.generate import CustomGenerate
from ouroboros.phrases.pool import PhrasePool

SIZES: dict[str, Any] = {"vocab_size": 60, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
GPT: dict[str, Any] = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, **SIZES}
LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "head_dim": 8,
    **SIZES,
}
KINDS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**LLAMA, sliding_window=7)),
}
PROMPT = torch.tensor([[5, 9, 2, 7, 9, 2, 8, 5, 9]])
BATCH = torch.tensor([[0, 0, 0, 7, 9, 2, 8, 5, 9], [3, 4, 5, 6, 7, 8, 9, 10, 11]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1, 1]])
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 14, "pad_token_id": 0}


def lively(model: Any, seed: int = 0) -> Any:
    """Weights that make texts which depend on what was read."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.25)
    return model.eval()


@pytest.fixture(scope="module")
def models() -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def model(kind: str) -> Any:
        if kind not in made:
            made[kind] = lively(KINDS[kind]())
        return made[kind]

    return model


@pytest.fixture(scope="module")
def draft() -> Any:
    return lively(KINDS["gpt2"](), seed=1)


def texts(model: Any, **settings: Any) -> Any:
    """By ``generate`` alone: one row for each."""
    return model.generate(**{**GREEDY, **settings})


def same(model: Any, draft: Any, make: Callable[[], dict[str, Any]], itself: Any = None) -> torch.Tensor:
    """What ``make`` gives is written alike by ``generate``, by a drafted tree and without a draft model.

    ``make``: anew for each, since caches are written to. ``itself``: the model as a draft.
    """
    plain = texts(model, **make())
    own = CustomGenerate()
    for more in ({"draft_model": draft}, {}, {"method": "speculative", "draft_model": itself or model}):
        assert texts(model, **make(), **more, custom_generate=own).tolist() == plain.tolist()
    assert isinstance(plain, torch.Tensor)
    return plain


def refused(words: str, model: Any, **settings: Any) -> None:
    with pytest.raises(InputError, match=words) as caught:
        texts(model, **settings, custom_generate=CustomGenerate())
    assert "\n" not in str(caught.value)


def embeddings(model: Any, ids: torch.Tensor, seed: int = 3) -> Any:
    """Of the prompt, with noise: of no token."""
    found = model.get_input_embeddings()(ids).detach()
    return found + 0.3 * torch.randn(found.shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------- model inputs


@pytest.mark.parametrize("kind", KINDS)
def test_positions_of_ones_own(models: Any, draft: Any, kind: str) -> None:
    model = models(kind)
    for positions in (PROMPT[0] * 0 + 3, torch.arange(9) + 11, torch.arange(9) * 3):
        written = same(model, draft, partial(dict, input_ids=PROMPT, position_ids=positions[None]))
    assert kind == "mistral" or written.tolist() != texts(model, input_ids=PROMPT).tolist()
    many = 1 + torch.arange(60)[None] % 59  # more rows than there are positions, in the end
    same(model, draft, partial(dict, input_ids=many, position_ids=torch.full((1, 60), 3)))
    rows = torch.stack((torch.arange(9) + 4, torch.arange(9) + 1))
    same(model, draft, lambda: {"input_ids": BATCH, "attention_mask": MASK, "position_ids": rows})


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_in_place_of_tokens(models: Any, draft: Any, kind: str) -> None:
    model = models(kind)
    found = embeddings(model, PROMPT)
    alone = same(model, draft, lambda: {"inputs_embeds": found})
    assert alone.shape[1] == 14
    both = same(model, draft, lambda: {"inputs_embeds": found, "input_ids": PROMPT})
    assert both[:, 9:].tolist() == alone.tolist() != texts(model, input_ids=PROMPT)[:, 9:].tolist()
    longer = torch.cat((embeddings(model, PROMPT[:, :4], seed=5), found), dim=1)  # virtual tokens before the prompt
    for given in (longer, found[:, :3]):
        mask = torch.ones(given.shape[:2]).long()
        same(model, draft, partial(dict, inputs_embeds=given, input_ids=PROMPT, attention_mask=mask))
    batch = embeddings(model, BATCH)
    same(model, draft, lambda: {"inputs_embeds": batch, "attention_mask": MASK})
    same(model, draft, lambda: {"inputs_embeds": batch, "attention_mask": MASK, "input_ids": BATCH})
    same(model, draft, lambda: {"inputs_embeds": found, "repetition_penalty": 1.3, "input_ids": PROMPT})


def test_processors_are_shown_no_placeholder(models: Any, draft: Any) -> None:
    seen = []

    def look(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(ids.shape[1])
        return scores

    found = embeddings(models("llama"), PROMPT)
    settings: dict[str, Any] = {"inputs_embeds": found, "logits_processor": LogitsProcessorList([look])}
    texts(models("llama"), **settings, draft_model=draft, custom_generate=CustomGenerate())
    assert min(seen) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_of_ones_own(models: Any, draft: Any, kind: str) -> None:
    model = models(kind)

    def filled() -> dict[str, Any]:
        cache = DynamicCache(config=model.config)
        model(PROMPT[:, :6], past_key_values=cache)
        return {"input_ids": PROMPT, "past_key_values": cache}

    same(model, draft, filled)
    caches = []
    for more in ({}, {"custom_generate": CustomGenerate()}):
        cache: Any = DynamicCache(config=model.config)
        first = texts(model, input_ids=PROMPT, past_key_values=cache, **more)
        turn = torch.cat((first, torch.tensor([[4, 3]])), dim=-1)
        rows = cache.get_seq_length()
        second = texts(model, input_ids=turn, past_key_values=cache, **more).tolist()
        caches.append((rows, second, cache.get_seq_length(), [tuple(layer.keys.shape) for layer in cache.layers]))
        for layer in cache.layers:
            assert not layer.keys.is_inference()
    assert caches[0] == caches[1]
    refused("past_key_values must be a DynamicCache", model, input_ids=PROMPT, cache_implementation=None,
            past_key_values=hf.StaticCache(model.config, max_cache_len=40))  # fmt: skip
    full = DynamicCache(config=model.config)
    model(BATCH, past_key_values=full)
    longer = torch.cat((BATCH, BATCH), dim=-1)
    refused("past_key_values that hold rows", model, input_ids=longer, past_key_values=full)


def test_the_dictionary_has_the_cache(models: Any) -> None:
    plain = texts(models("llama"), input_ids=PROMPT, return_dict_in_generate=True)
    ours = texts(models("llama"), input_ids=PROMPT, return_dict_in_generate=True, custom_generate=CustomGenerate())
    for theirs, own in zip(plain.past_key_values.layers, ours.past_key_values.layers, strict=True):
        torch.testing.assert_close(own.keys, theirs.keys, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(own.values, theirs.values, atol=1e-5, rtol=1e-4)


def test_token_types(models: Any, draft: Any) -> None:
    types = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1, 2]])
    written = same(models("gpt2"), draft, lambda: {"input_ids": PROMPT, "token_type_ids": types})
    assert written.tolist() != texts(models("gpt2"), input_ids=PROMPT).tolist()
    both = types.expand(2, -1)
    same(models("gpt2"), draft, lambda: {"input_ids": BATCH, "attention_mask": MASK, "token_type_ids": both})


def test_what_every_step_would_be_given_is_refused(models: Any) -> None:
    config = hf.GPT2Config(**GPT, add_cross_attention=True)
    model = lively(hf.GPT2LMHeadModel(config))
    refused("encoder_hidden_states must be None", model, input_ids=PROMPT, encoder_hidden_states=torch.randn(1, 3, 32))


# ---------------------------------------------------------------------------------------- virtual tokens, adapters


class Virtual:
    """What prompt tuning and prefix tuning put into a model's preparation: learned embeddings, or learned rows."""

    def __init__(self, model: Any, kind: str, count: int = 4) -> None:
        self.model, self.kind, self.count = model, kind, count
        self.before = model.prepare_inputs_for_generation
        source = torch.Generator().manual_seed(9)
        width = model.config.get_text_config().hidden_size
        self.prompt = torch.randn(1, count, width, generator=source)
        self.rows = [torch.randn(1, 2, count, 8, generator=source) for _ in range(4)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inputs = self.before(*args, **kwargs)
        ids, cache = inputs["input_ids"], inputs["past_key_values"]
        if inputs.get("attention_mask") is not None:
            ones = torch.ones(len(ids), self.count)
            inputs["attention_mask"] = torch.cat((ones, inputs["attention_mask"]), dim=1)
        inputs["position_ids"] = None
        if cache.get_seq_length() == 0 and self.kind == "prefix":
            cache = DynamicCache(config=self.model.config)
            for layer in range(2):
                keys, values = (rows.expand(len(ids), -1, -1, -1) for rows in self.rows[2 * layer :][:2])
                cache.update(keys, values, layer)
            inputs["past_key_values"] = cache
        elif cache.get_seq_length() == 0:
            found = self.model.get_input_embeddings()(ids)
            inputs["inputs_embeds"] = torch.cat((self.prompt.expand(len(ids), -1, -1), found), dim=1)
            inputs["input_ids"] = None
        return inputs


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_virtual_tokens(models: Any, draft: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models("llama")
    plain = texts(model, input_ids=PROMPT)
    monkeypatch.setattr(model, "prepare_inputs_for_generation", Virtual(model, kind), raising=False)
    assert same(model, draft, lambda: {"input_ids": PROMPT}).tolist() != plain.tolist()
    same(model, draft, lambda: {"input_ids": BATCH, "attention_mask": MASK})


@pytest.mark.filterwarnings("ignore")  # of that library, about itself
@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig", "LoraConfig"])
def test_peft(draft: Any, kind: str) -> None:
    peft = pytest.importorskip("peft")
    model = lively(KINDS["llama"]())
    more = {"r": 4} if kind == "LoraConfig" else {"num_virtual_tokens": 4}
    tuned = lively(peft.get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", **more)))
    written = same(tuned, draft, lambda: {"input_ids": PROMPT}, itself=draft)
    assert written.tolist() != texts(lively(KINDS["llama"]()), input_ids=PROMPT).tolist()
    same(tuned, draft, lambda: {"input_ids": BATCH, "attention_mask": MASK}, itself=draft)
    with pytest.raises(ouroboros.LoadError, match="must be a transformers model, not PeftModel"):
        texts(model, input_ids=PROMPT, draft_model=tuned, custom_generate=CustomGenerate())


# --------------------------------------------------------------------------------------------------------- images


@pytest.fixture(scope="module")
def gemma() -> Any:
    text: dict[str, Any] = {**LLAMA, "sliding_window": 6, "query_pre_attn_scalar": 8, "max_position_embeddings": 96}
    vision: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(**text),
        vision_config=hf.SiglipVisionConfig(**vision, image_size=8, patch_size=2),
        mm_tokens_per_image=4,
        image_token_index=59,
        boi_token_index=58,
        eoi_token_index=57,
    )
    return lively(hf.Gemma3ForConditionalGeneration(config))


def test_images(gemma: Any, draft: Any) -> None:
    ids = torch.tensor([[5, 9, 58, 59, 59, 59, 59, 57, 7, 9, 2]])
    pictures = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    one = {"input_ids": ids, "pixel_values": pictures[:1], "token_type_ids": (ids == 59).long()}
    two = {
        "input_ids": torch.cat((ids, ids)),
        "pixel_values": pictures,
        "token_type_ids": (ids == 59).long().expand(2, -1),
        "attention_mask": torch.ones(2, 11).long(),
    }
    first = same(gemma, draft, lambda: dict(one))
    assert first.tolist() != texts(gemma, **{**one, "pixel_values": pictures[1:]}).tolist()
    same(gemma, draft, lambda: dict(two))


# ----------------------------------------------------------------------------------------------- settings, by name


def allowed(batch: int, ids: torch.Tensor) -> list[int]:
    return list(range(20)) if batch == 0 else list(range(20, 60))


class Stop:
    def __call__(self, ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        return torch.full((len(ids),), ids.shape[1] >= 15)


# What shows in the text, with a value that changes it: honoured if ``generate`` and ours write the same. Several at
# once where one needs the other. Of two rows, so that what belongs to one row does not reach the other.
SHOWN: dict[str, dict[str, Any]] = {
    "bad_words_ids": {"bad_words_ids": [[40], [54, 54]]},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(30))},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1, "repetition_penalty": 1e-2},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 50.0},
    "eos_token_id": {"eos_token_id": list(range(0, 60, 3))},
    "epsilon_cutoff": {"epsilon_cutoff": 0.5, "do_sample": True, "top_k": 0},
    "eta_cutoff": {"eta_cutoff": 0.999, "do_sample": True, "top_k": 0, "temperature": 1e-3},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (2, 9.0), "eos_token_id": 4},
    "forced_bos_token_id": {"forced_bos_token_id": 3},
    "forced_eos_token_id": {"forced_eos_token_id": 3},
    "guidance_scale": {"guidance_scale": 2.5},
    "max_length": {"max_length": 13, "max_new_tokens": None},
    "max_new_tokens": {"max_new_tokens": 5},
    "min_length": {"min_length": 18, "eos_token_id": list(range(0, 60, 2))},
    "min_new_tokens": {"min_new_tokens": 9, "eos_token_id": list(range(0, 60, 2))},
    "min_p": {"min_p": 1.0, "do_sample": True, "top_k": 0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "num_return_sequences": {"num_return_sequences": 2, "do_sample": True, "top_k": 1},
    "pad_token_id": {"pad_token_id": 7, "eos_token_id": list(range(0, 60, 3))},
    "prefill_chunk_size": {"prefill_chunk_size": 4},
    "renormalize_logits": {"renormalize_logits": True},
    "remove_invalid_values": {"remove_invalid_values": True},
    "repetition_penalty": {"repetition_penalty": 4.0},
    "sequence_bias": {"sequence_bias": [[[8], 30.0], [[8, 5], -60.0]]},
    "suppress_tokens": {"suppress_tokens": list(range(0, 60, 2))},
    "temperature": {"temperature": 1e-6, "do_sample": True, "top_k": 0},
    "top_h": {"top_h": 1e-6, "do_sample": True, "top_k": 0},
    "top_k": {"top_k": 1, "do_sample": True},
    "top_p": {"top_p": 1e-6, "do_sample": True, "top_k": 0},
    "typical_p": {"typical_p": 1e-6, "do_sample": True, "top_k": 0, "temperature": 1e-3},
    "watermarking_config": {"watermarking_config": hf.WatermarkingConfig(bias=9.0, seeding_scheme="lefthash")},
    "logits_processor": {"logits_processor": LogitsProcessorList([lambda ids, scores: -scores])},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": allowed},
    "stopping_criteria": {"stopping_criteria": StoppingCriteriaList([Stop()])},
    "negative_prompt_ids": {"guidance_scale": 2.5, "negative_prompt_ids": torch.tensor([[3, 1, 4], [2, 7, 1]])},
    "negative_prompt_attention_mask": {
        "guidance_scale": 2.5,
        "negative_prompt_ids": torch.tensor([[3, 1, 4], [2, 7, 1]]),
        "negative_prompt_attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
    },
}
# What changes what comes back, and not the text; and what stands in no call. Each has a test of its own.
ELSEWHERE = {
    *("bos_token_id", "max_time", "output_attentions", "output_hidden_states", "output_logits", "output_scores"),
    *("return_dict_in_generate", "stop_strings", "token_healing", "_from_model_config", "do_sample"),
}
# Of ``generate`` itself.
INPUTS = {"inputs", "generation_config", "custom_generate", "kwargs", "self"}
KEPT_BY_TRANSFORMERS = {"synced_gpus", "assistant_model", "streamer"}  # no callable is told; the docstring says so


@pytest.mark.parametrize("name", SHOWN)
def test_every_setting_that_shows_shows(models: Any, draft: Any, name: str) -> None:
    make: Any = partial(dict, input_ids=BATCH, attention_mask=MASK, **SHOWN[name])
    written = same(models("gpt2"), draft, make)
    silent = {"prefill_chunk_size", "renormalize_logits", "remove_invalid_values", "forced_bos_token_id"}
    if name not in silent and not SHOWN[name].get(
        "do_sample"
    ):  # sampled, they write the greedy text: one token is left
        assert written.tolist() != texts(models("gpt2"), input_ids=BATCH, attention_mask=MASK).tolist()


@pytest.mark.parametrize("name", REFUSED)
def test_every_setting_that_cannot_be_is_refused_by_its_name(models: Any, name: str) -> None:
    config = GenerationConfig(max_new_tokens=3)
    if not hasattr(config, name):
        pytest.skip("not in this version of transformers")
    values = {"num_beams": 2, "num_beam_groups": 2, "constraints": [3], "force_words_ids": [[3]], "penalty_alpha": 0.6}
    values |= {"dola_layers": "low", "cache_implementation": "static", "prompt_lookup_num_tokens": 3}
    value = {**values, "assistant_early_exit": 1, "use_mtp": True}[name]
    setattr(config, name, value)
    own, ids = CustomGenerate(), PROMPT
    with pytest.raises(InputError, match=rf"^{name} must be .*, not "):
        own(models("gpt2"), ids, LogitsProcessorList(), StoppingCriteriaList(), config)


def test_the_tables_have_every_setting() -> None:
    settings = set(GenerationConfig().to_dict()) | set(inspect.signature(GenerationMixin.generate).parameters)
    known = [set(SHOWN), set(REFUSED), set(WITHOUT_MEANING), ELSEWHERE, INPUTS, KEPT_BY_TRANSFORMERS]
    assert settings - set().union(*known) == set()
    assert sum(map(len, known)) == len(set().union(*known)), "each in one table"
    docs = CustomGenerate.__call__.__doc__ or ""
    assert [name for name in KEPT_BY_TRANSFORMERS | {"tokenizer", "use_cache"} if name not in docs] == []


def test_processors_that_count_their_calls_are_refused(models: Any) -> None:
    config = hf.SynthIDTextWatermarkingConfig(keys=[3, 5, 7], ngram_len=3)
    refused("SynthIDTextWatermarkLogitsProcessor cannot be used", models("gpt2"), input_ids=PROMPT,
            watermarking_config=config)  # fmt: skip


def test_the_rest_of_the_settings(models: Any, draft: Any) -> None:
    model = models("llama")
    assert (
        texts(model, bos_token_id=9, custom_generate=CustomGenerate()).tolist() == texts(model, bos_token_id=9).tolist()
    )
    slow = texts(model, input_ids=PROMPT, max_time=1e-9, custom_generate=CustomGenerate())
    assert slow.shape[1] == 10
    refused("output_attentions must be False", model, input_ids=PROMPT, output_attentions=True,
            return_dict_in_generate=True)  # fmt: skip
    with pytest.raises(ValueError, match="tokenizer"):
        texts(model, input_ids=PROMPT, stop_strings=["a"], custom_generate=CustomGenerate())
    for name in ("token_healing",):
        with pytest.raises(Exception, match="tokenizer"):
            texts(model, input_ids=PROMPT, **{name: True}, custom_generate=CustomGenerate())
    refused("attention_mask must be 0 on the left alone", model, input_ids=PROMPT,
            attention_mask=torch.tensor([[1, 1, 1, 0, 1, 1, 1, 1, 1]]))  # fmt: skip
    assert StopStringCriteria is not None


# ----------------------------------------------------------------------------------------------------------- ends


def test_at_the_end_of_the_positions(models: Any, draft: Any) -> None:
    gpt, llama = models("gpt2"), models("llama")
    ids = 1 + torch.arange(64)[None] % 59
    assert (
        texts(gpt, input_ids=ids, max_new_tokens=1).tolist()
        == texts(gpt, input_ids=ids, max_new_tokens=1, custom_generate=CustomGenerate()).tolist()
    )
    for more in ({}, {"draft_model": draft}):
        with pytest.warns(UserWarning, match="ends after 5 new tokens, where the 64 positions of GPT2LMHeadModel end"):
            ours = texts(gpt, input_ids=ids[:, :60], max_new_tokens=30, **more, custom_generate=CustomGenerate())
        assert ours.tolist() == texts(gpt, input_ids=ids[:, :60], max_new_tokens=5).tolist()
        for room in (0, 1, 2, 3):  # up to the end, without a word
            same(gpt, draft, partial(dict, input_ids=ids[:, : 63 - room], max_new_tokens=2 + room))
    refused(
        "the prompt has position 64; GPT2LMHeadModel has 64 in all", gpt, input_ids=torch.cat((ids, ids[:, :1]), -1)
    )
    refused("position_ids must be at least 0", gpt, input_ids=PROMPT, position_ids=torch.arange(9)[None] - 1)
    for length in (40, 47, 48, 49, 70):  # rotary angles go on
        row = 1 + torch.arange(length)[None] % 59
        same(llama, draft, partial(dict, input_ids=row))


def test_any_number_of_new_tokens_takes_no_memory_for_them(models: Any, draft: Any) -> None:
    import resource

    stop = texts(models("llama"), input_ids=PROMPT)[0, 14]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    settings: dict[str, Any] = {"input_ids": PROMPT, "max_new_tokens": 10**10, "eos_token_id": int(stop)}
    same(models("llama"), draft, lambda: dict(settings))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


# --------------------------------------------------------------------------------------------- what is kept, modes


def test_a_model_that_changes_is_seen(draft: Any) -> None:
    own = CustomGenerate()
    model = lively(KINDS["llama"]())

    def check(**more: Any) -> Any:
        plain = texts(model, input_ids=PROMPT, **more)
        for side in ({}, {"draft_model": draft}):
            assert texts(model, input_ids=PROMPT, **more, **side, custom_generate=own).tolist() == plain.tolist()
        return plain

    check()
    model.resize_token_embeddings(67, mean_resizing=False)
    lively(model, seed=4)
    assert (check(suppress_tokens=list(range(60)))[0, 9:] >= 60).all()
    model.resize_token_embeddings(55, mean_resizing=False)
    check()
    model.load_state_dict(lively(model.__class__(model.config), seed=7).state_dict())
    check()
    model.model.layers[0] = lively(model.__class__(model.config), seed=8).model.layers[0]
    check()
    handle = model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output * -2)  # an adapter
    adapted = check()
    handle.remove()
    assert check().tolist() != adapted.tolist()
    model.set_attn_implementation("eager")
    check()
    model.to(torch.float64)
    check()
    model.generation_config.eos_token_id = int(check()[0, 12])
    assert check().shape[1] < 23


def test_a_decoder_says_that_its_model_has_changed() -> None:
    model = lively(KINDS["gpt2"]())
    decoder = ouroboros.load(model, method="lookahead")
    assert len(decoder.generate([5, 9], max_new_tokens=3).token_ids) == 3
    model.resize_token_embeddings(67, mean_resizing=False)
    with pytest.raises(ouroboros.LoadError, match=r"GPT2LMHeadModel has changed, its vocabulary was 60 and is 67"):
        decoder.generate([5, 9], max_new_tokens=3)


def test_a_pool_of_another_vocabulary_is_refused(models: Any) -> None:
    pool = PhrasePool()
    own = CustomGenerate()
    small = lively(hf.GPT2LMHeadModel(hf.GPT2Config(**{**GPT, "vocab_size": 8})))
    texts(models("gpt2"), input_ids=PROMPT, phrase_pool=pool, custom_generate=own)
    with pytest.raises(InputError, match=r"the PhrasePool holds the token id \d+; allowed are 0 to 7"):
        texts(small, input_ids=PROMPT.clamp(max=7), phrase_pool=pool, custom_generate=own)


def test_modes_are_as_they_were_and_there_is_no_dropout(models: Any) -> None:
    target, helper = lively(KINDS["gpt2"]()), lively(KINDS["gpt2"](), seed=2)
    plain = texts(target, input_ids=PROMPT)
    own = CustomGenerate()
    for _ in range(2):
        target.train()
        helper.train()
        helper.transformer.h[0].eval()
        modes = [[part.training for part in one.modules()] for one in (target, helper)]
        assert texts(target, input_ids=PROMPT, draft_model=helper, custom_generate=own).tolist() == plain.tolist()
        assert modes == [[part.training for part in one.modules()] for one in (target, helper)]
    with pytest.raises(InputError, match="method must be one of"):
        texts(target, input_ids=PROMPT, method="nonsense", custom_generate=own)
    assert target.training
    decoder = ouroboros.load(target, method="lookahead")
    assert target.training
    assert [*PROMPT[0].tolist(), *decoder.generate(PROMPT[0].tolist(), max_new_tokens=14).token_ids] == plain[
        0
    ].tolist()
    assert target.training


def test_what_it_leaves_can_be_trained_with() -> None:
    """No tensor of inference mode stays: in a module's tables, in its caches, in what comes back."""
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**{**LLAMA, "rope_parameters": scaled}))
    lively(model).train()
    result = texts(
        model, input_ids=PROMPT, return_dict_in_generate=True, output_scores=True, output_logits=True,
        custom_generate=CustomGenerate(),
    )  # fmt: skip
    assert not [name for name in ("scores", "logits") for one in result[name] if one.is_inference()]
    loss = (
        model(result.sequences, labels=result.sequences).loss + (result.scores[0] * model.lm_head.weight.sum()).mean()
    )
    loss.backward()
    assert model.lm_head.weight.grad is not None
