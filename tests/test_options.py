"""Nothing that can be given is swallowed: it shows, is refused by its name, or is said to be without meaning."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch

import ouroboros
from ouroboros import Chat, Decoder, GenerationResult, InputError, SamplingParams, cli, pairing
from ouroboros.commands.options import Place
from ouroboros.config import METHODS
from ouroboros.config.parameters import GRAMMARS
from tests.pairs import EMBEDDED
from tests.test_cli import FakeLoad

PROMPT = "def fibonacci(n):\n    "
EOS = 0


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with ouroboros.load(dtype="float32") as decoder:
        yield decoder


@pytest.fixture(scope="module")
def greedy(decoder: Decoder) -> GenerationResult:
    return decoder.generate(PROMPT, max_new_tokens=12, ignore_eos=True)


# ----------------------------------------------------------------------------------------------------- parameters


def force(token: int) -> Callable[[Any, Any], Any]:
    def processor(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -1e9).index_fill(-1, torch.tensor([token]), 0.0)

    return processor


def tokens(decoder: Decoder, **settings: Any) -> tuple[int, ...]:
    given = {"max_new_tokens": 12, "ignore_eos": True, **settings}
    result: GenerationResult = decoder.generate(PROMPT, **given)
    return result.token_ids


Show = Callable[[Decoder, tuple[int, ...]], bool]
SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 3}
SHOWS: dict[str, Show] = {
    "max_new_tokens": lambda d, greedy: tokens(d, max_new_tokens=5) == greedy[:5],
    "temperature": lambda d, greedy: tokens(d, **SAMPLED) != greedy,
    "top_k": lambda d, greedy: tokens(d, **SAMPLED, top_k=1) == greedy,
    "top_p": lambda d, greedy: tokens(d, **SAMPLED, top_p=1e-9) == greedy,
    "min_p": lambda d, greedy: tokens(d, **SAMPLED, min_p=1.0) == greedy,
    "repetition_penalty": lambda d, greedy: tokens(d, repetition_penalty=5.0) != greedy,
    "presence_penalty": lambda d, greedy: len(set(tokens(d, presence_penalty=1e6))) == 12,
    "frequency_penalty": lambda d, greedy: len(set(tokens(d, frequency_penalty=1e6))) == 12,
    "logit_bias": lambda d, greedy: tokens(d, logit_bias={77: 1e9}) == (77,) * 12,
    "processors": lambda d, greedy: tokens(d, processors=[force(5)]) == (5,) * 12,
    "grammar": lambda d, greedy: (d.generate(PROMPT, grammar={"regex": "[0-9]{3}"}).text or "").isdigit(),
    "guidance_scale": lambda d, greedy: tokens(d, guidance_scale=4.0, negative_prompt="class A:\n") != greedy,
    "negative_prompt": lambda d, greedy: (
        tokens(d, guidance_scale=4.0) != tokens(d, guidance_scale=4.0, negative_prompt="class A:\n")
    ),
    "n": lambda d, greedy: len(d.generate(PROMPT, max_new_tokens=1, n=3)) == 3,
    "logprobs": lambda d, greedy: (
        [len(one.top) for one in d.generate(PROMPT, max_new_tokens=1, logprobs=3).logprobs or ()] == [3]
    ),
    "seed": lambda d, greedy: d.generate(PROMPT, max_new_tokens=1, seed=9).stats.seed == 9,
    "stop": lambda d, greedy: tokens(d, stop="\n") == greedy[: len(tokens(d, stop="\n"))] != greedy,
    "stop_token_ids": lambda d, greedy: tokens(d, stop_token_ids=[greedy[4]]) == greedy[: greedy.index(greedy[4]) + 1],
    "ignore_eos": lambda d, greedy: (
        [len(tokens(d, logit_bias={EOS: 1e9}, ignore_eos=on)) for on in (False, True)] == [1, 12]
    ),
    "prediction": lambda d, greedy: (
        d.generate(PROMPT, max_new_tokens=12, prediction=greedy).stats.accepted_by_origin.get("predicted", 0) > 8
    ),
    "method": lambda d, greedy: (
        d.generate(PROMPT, max_new_tokens=1, method="token_recycling").stats.method == "token_recycling"
    ),
}


@pytest.mark.parametrize("name", SHOWS)
def test_every_parameter_shows(decoder: Decoder, greedy: GenerationResult, name: str) -> None:
    if name == "grammar":
        pytest.importorskip("llguidance")
    assert SHOWS[name](decoder, greedy.token_ids)


def test_the_table_has_every_parameter() -> None:
    assert list(SHOWS) == [field.name for field in dataclasses.fields(SamplingParams)]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [1e-38, 1e-11, 1e11, 1e39, 1e300]),
        ("repetition_penalty", [1e-39, 1e-7, 1e7, 1e39]),
        ("presence_penalty", [1e39, -1e39, 1e10]),
        ("frequency_penalty", [1e39, -1e10]),
        ("guidance_scale", [1e39, 1e10]),
        ("logit_bias", [{5: 1e39}, {5: -1e39}, {5: 1e10}]),
        ("n", [1025, 10**10]),
        ("stop_token_ids", [5.0, "5", [-1], [5.0], ["a"], [True], None, [torch.tensor([5])], {5: 1}]),
        ("negative_prompt", [[torch.tensor([5])], [True], {5: 1}]),
    ],
)
def test_what_32_bits_cannot_do_is_refused_with_what_they_can(name: str, values: Sequence[Any]) -> None:
    for value in values:
        more: dict[str, Any] = {"guidance_scale": 2.0} if name == "negative_prompt" else {}
        with pytest.raises(InputError, match=rf"^{name} must ") as caught:
            SamplingParams(**{name: value}, **more)
        assert "\n" not in str(caught.value)


EXTREMES: list[dict[str, Any]] = [
    {"temperature": 1e-10},
    {"temperature": 1e-10, "guidance_scale": 1e9, "repetition_penalty": 1e6, "presence_penalty": -1e9},
    {"temperature": 1e10, "guidance_scale": 1e9, "repetition_penalty": 1e-6, "frequency_penalty": 1e9},
    {"temperature": 1e-10, "top_p": 1e-300, "min_p": 5e-324, "top_k": 2**40},
    {"temperature": 1e-10, "logit_bias": {3: -3.4e38, 5: 1e9}},
    {"temperature": 1e10, "logit_bias": dict.fromkeys(range(8000), -3.4e38)},
]


@pytest.mark.parametrize("settings", EXTREMES)
@pytest.mark.parametrize("method", ["ouroboros", "speculative", "token_recycling"])
def test_the_ends_of_the_ranges_are_computed_alike_by_every_method(settings: dict[str, Any], method: str) -> None:
    plain, other = ouroboros.load(method="autoregressive"), ouroboros.load(method=method)
    assert tokens(plain, seed=4, **settings) == tokens(other, seed=4, **settings)
    banned = [i for i, value in settings.get("logit_bias", {}).items() if value < 0]
    assert not set(banned) & set(tokens(plain, seed=4, **settings))


def test_next_to_zero_a_temperature_is_greedy(decoder: Decoder, greedy: GenerationResult) -> None:
    assert tokens(decoder, temperature=1e-10, seed=1) == greedy.token_ids


# ----------------------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("method", METHODS)
def test_stop_tokens_end_every_method_alike(method: str, greedy: GenerationResult) -> None:
    decoder = ouroboros.load(method=method, dtype="float32")
    stop = greedy.token_ids[5]
    for ids in ([stop], stop, (stop, 3), np.array([stop]), torch.tensor([3, stop])):
        if isinstance(ids, int):
            with pytest.raises(InputError, match="stop_token_ids must be token ids"):
                decoder.generate(PROMPT, stop_token_ids=ids)
            continue
        result = decoder.generate(PROMPT, max_new_tokens=12, ignore_eos=True, stop_token_ids=ids)
        assert result.token_ids == greedy.token_ids[: greedy.token_ids.index(stop) + 1]
        assert result.finish_reason == "stop"
        assert decoder.tokenizer is not None
        assert result.text == decoder.tokenizer.decode(result.token_ids[:-1])  # as with an end of sequence
    with pytest.raises(InputError, match=r"stop_token_ids holds the token id 8192; allowed are 0 to 8191"):
        decoder.generate(PROMPT, stop_token_ids=[8192])


def test_a_stop_string_that_is_a_special_token_is_found(decoder: Decoder) -> None:
    settings: dict[str, Any] = {"logit_bias": {EOS: 1e9}, "max_new_tokens": 5, "ignore_eos": True}
    assert decoder.generate(PROMPT, **settings).finish_reason == "length"
    result = decoder.generate(PROMPT, stop=["never", "<|endoftext|>"], **settings)
    assert (result.token_ids, result.text, result.finish_reason) == ((EOS,), "", "stop")
    with pytest.raises(InputError, match=r"stop must hold the special token '<\|endoftext\|>' alone, not 'a<"):
        decoder.generate(PROMPT, stop="a<|endoftext|>")


def test_any_number_of_new_tokens_takes_no_memory_for_them(decoder: Decoder, greedy: GenerationResult) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in (10**10, 2**63, 10**30):
        result = decoder.generate(PROMPT, max_new_tokens=number, stop_token_ids=[greedy.token_ids[3]], ignore_eos=True)
        assert result.token_ids == greedy.token_ids[: len(result.token_ids)]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


# -------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("kind", [torch.tensor, np.array], ids=["tensors", "arrays"])
def test_a_list_of_tensors_is_a_list_of_prompts(decoder: Decoder, kind: Any) -> None:
    batch = decoder.generate([kind([5]), kind([7])], max_new_tokens=2)
    assert [result.prompt_token_ids for result in batch] == [(5,), (7,)]
    one = decoder.generate([kind(5), kind(7)], max_new_tokens=2)  # of no dimension: numbers
    assert one.prompt_token_ids == (5, 7)
    assert decoder.generate(kind([5, 7]), max_new_tokens=2).prompt_token_ids == (5, 7)
    wrongs: list[Any] = [kind([[5, 7]]), [kind([[5]])], [True, False], [5, 7.5]]
    for wrong in wrongs:
        with pytest.raises(InputError, match="prompt must be"):
            decoder.generate(wrong, max_new_tokens=2)


# ----------------------------------------------------------------------------------------------------------- load


def _model(**settings: Any) -> Decoder:
    return ouroboros.load(**{"target": EMBEDDED / "target", "method": "lookahead", **settings})


def _refused(words: str, **settings: Any) -> bool:
    with pytest.raises(InputError, match=words):
        _model(**settings)
    return True


LOAD: dict[str, Callable[[], bool]] = {
    "target": lambda: _model(target=EMBEDDED / "draft").target.info.parameters < _model().target.info.parameters,
    "draft": lambda: _refused("draft must be None", draft=EMBEDDED / "draft"),
    "tokenizer": lambda: _model(tokenizer=EMBEDDED / "draft").tokenizer is not None,
    "method": lambda: _model(method="prompt_lookup").generate(PROMPT, max_new_tokens=1).stats.method == "prompt_lookup",
    "dtype": lambda: _model(dtype="float64").target.info.dtype == "float64",
    "device": lambda: _refused("device must be", device="tpu"),
    "pool": lambda: _model(pool=False).pool is None,
    "options": lambda: _model(options={"window": 3}).options == ouroboros.LookaheadOptions(window=3),
    "revision": lambda: "without meaning for a directory" in (ouroboros.load.__doc__ or ""),
    "token": lambda: "without meaning for a directory" in (ouroboros.load.__doc__ or ""),
    "pool_read_only": lambda: _refused("pool_read_only needs a pool's path", pool_read_only=True),
    "backend": lambda: _model(backend="transformers").target.info.backend == "transformers",
    "device_map": lambda: _refused("device_map", device_map="auto", backend="native"),
    "engine": lambda: (_model(engine="plain").target.info.engine or "").startswith("plain"),
    "draft_dtype": lambda: _refused("draft_dtype must be auto", draft_dtype="int8"),
    "threads": lambda: _refused("threads must be", threads=0),
}


@pytest.mark.parametrize("name", LOAD)
def test_every_parameter_of_load_shows(name: str) -> None:
    assert LOAD[name]()


def test_the_table_has_every_parameter_of_load() -> None:
    assert set(LOAD) == set(inspect.signature(pairing.load).parameters)
    assert set(inspect.signature(Decoder.generate).parameters) == {"self", "prompt", "params", "settings"}


@pytest.mark.parametrize(("name", "value"), [("dtype", "bfloat16"), ("device", "cuda:7"), ("backend", "transformers")])
def test_a_model_that_is_loaded_is_not_asked_to_be_another(name: str, value: str) -> None:
    model = _model(dtype="float32").target
    assert _model(target=model, dtype="float32").target is model
    with pytest.raises(InputError, match=name):
        _model(target=model, **{name: value})


def test_the_hub_is_told_of_revision_and_token(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def resolve(source: str, revision: str | None, token: str | None) -> Path:
        seen.append((source, revision, token))
        return EMBEDDED / "target"

    monkeypatch.setattr("ouroboros.opening.resolve", resolve)
    _model(target="owner/name", revision="r", token="t")
    assert seen == [("owner/name", "r", "t")]


def test_an_argument_of_load_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="nonsense"):
        ouroboros.load(nonsense=1)  # type: ignore[call-arg]


# --------------------------------------------------------------------------------------------------- command line


def commands() -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}

    def add(name: str, command: click.Command) -> None:
        found[name] = command
        for below, one in getattr(command, "commands", {}).items():
            add(f"{name} {below}", one)

    for name, command in cli.cli.commands.items():
        add(name, command)
    return found


@pytest.mark.parametrize("name", commands())
def test_every_option_of_every_command_is_read(name: str) -> None:
    """What the function behind a command is given it looks at: a parameter that is never read would be swallowed."""
    function: Any = inspect.unwrap(commands()[name].callback or (lambda: None))
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    [definition] = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function.__name__
    ]
    read = {node.id for node in ast.walk(definition) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    parameters = inspect.signature(function).parameters
    given = set(parameters)
    assert given <= read
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return  # the rest goes to a dataclass by its names, which refuses others
    gathered = {"params": set(SHOWS) | set(GRAMMARS), "place": {field.name for field in dataclasses.fields(Place)}}
    allowed = given.union(*(names for value, names in gathered.items() if value in given))
    options = {str(option.name) for option in commands()[name].params} - {"help", "version"}
    assert options <= allowed


def test_the_parameters_that_have_no_option_are_known(load: FakeLoad) -> None:
    options = {str(option.name) for option in cli.cli.commands["generate"].params}
    assert set(SHOWS) - options == {
        "processors",
        "grammar",
        "n",
        "prediction",
    }  # functions; by kind; one stream; long text


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> FakeLoad:
    fake = FakeLoad()
    monkeypatch.setattr(cli, "_load", fake)
    return fake


# ------------------------------------------------------------------------------------------------------ templates


def test_every_field_of_a_chat_has_a_test() -> None:
    text = (Path(__file__).parent / "test_messages.py").read_text()
    assert [
        field.name
        for field in dataclasses.fields(Chat)
        if f"{field.name}=" not in text and f'"{field.name}"' not in text
    ] == []
