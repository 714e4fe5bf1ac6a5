"""What the commands share: the session that they are given, and the conversion of option texts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from ouroboros.commands.process import Interrupts
from ouroboros.config import GRAMMARS, MethodOptions, SamplingParams
from ouroboros.errors import InputError
from ouroboros.prompts import read_text

if TYPE_CHECKING:
    from ouroboros._render import Screen
    from ouroboros.generate import Decoder

__all__ = [
    "Load",
    "Place",
    "Tools",
    "loading_status",
    "method_settings",
    "pair_options",
    "place_options",
    "sampling_options",
    "to_json",
]

_Command = Callable[..., Any]
_DEFAULTS = SamplingParams()
_MOST_THREADS = 1024
_JSON_ESCAPES = {n: f"\\u{n:04x}" for n in range(0x7F, 0xA0)}  # json leaves these in, and a terminal obeys some


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how the models run.

    Raises:
        InputError: a number of threads that no machine has.
    """

    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    backend: str = "auto"
    engine: str = "auto"
    revision: str | None = None
    draft_dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= _MOST_THREADS:
            raise InputError(f"--threads must be a whole number from 1 to {_MOST_THREADS}, not {self.threads}")


class Load(Protocol):
    """How a command gets its decoder."""

    def __call__(
        self,
        target: str | None,
        draft: str | None,
        method: str,
        options: MethodOptions | Mapping[str, str],
        place: Place,
        pool: str | bool | None,
        pool_read_only: bool,
        /,
    ) -> Decoder: ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What a command is given beside its options."""

    interrupts: Interrupts
    load: Load


def _together(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_sampling = _together(
    click.option("--max-new-tokens", type=int, metavar="N", default=_DEFAULTS.max_new_tokens, show_default=True),
    click.option("--temperature", type=float, default=_DEFAULTS.temperature, show_default=True, help="0 is greedy."),
    click.option("--top-k", type=int, default=_DEFAULTS.top_k, show_default=True, help="0 keeps all tokens."),
    click.option("--top-p", type=float, default=_DEFAULTS.top_p, show_default=True),
    click.option("--min-p", type=float, default=_DEFAULTS.min_p, show_default=True),
    click.option("--repetition-penalty", type=float, default=_DEFAULTS.repetition_penalty, show_default=True),
    click.option("--presence-penalty", type=float, default=_DEFAULTS.presence_penalty, show_default=True),
    click.option("--frequency-penalty", type=float, default=_DEFAULTS.frequency_penalty, show_default=True),
    click.option("--logit-bias", multiple=True, metavar="ID=X", help="Add X to the logit of the token ID. Repeatable."),
    click.option("--json-schema", metavar="S", help="The output matches this JSON schema: its text, or @FILE."),
    click.option("--regex", metavar="R", help="The output matches this regular expression, or that of @FILE."),
    click.option("--lark", metavar="G", help="The output matches this Lark grammar, or that of @FILE."),
    click.option(
        "--guidance-scale",
        type=float,
        default=_DEFAULTS.guidance_scale,
        show_default=True,
        help="Classifier-free guidance: above 1 stresses the prompt.",
    ),
    click.option("--negative-prompt", metavar="P", help="What guidance leads away from."),
    click.option("--logprobs", type=int, metavar="N", help="Log-probabilities of new tokens and the N likeliest."),
    click.option(
        "--seed", type=int, default=_DEFAULTS.seed, help="Of the draws; by default one is drawn and reported."
    ),
    click.option("--stop", multiple=True, metavar="S", help="End the output where this text begins. Repeatable."),
    click.option(
        "--stop-token-id",
        "stop_token_ids",
        type=int,
        multiple=True,
        metavar="ID",
        help="End the output at this token, also with --ignore-eos. Repeatable.",
    ),
    click.option("--ignore-eos", is_flag=True, default=_DEFAULTS.ignore_eos, help="Go on past end-of-sequence tokens."),
)
_SAMPLING = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "guidance_scale",
    "negative_prompt",
    "logprobs",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
)


def sampling_options(command: _Command) -> _Command:
    """Options for most fields of SamplingParams, with its defaults; the command gets them as ``params``."""

    @functools.wraps(command)
    def with_params(*args: Any, **values: Any) -> Any:
        settings = {name: values.pop(name) for name in _SAMPLING}
        bias, grammar = _logit_bias(values.pop("logit_bias")), _grammar({name: values.pop(name) for name in GRAMMARS})
        return command(*args, params=SamplingParams(logit_bias=bias, grammar=grammar, **settings), **values)

    return _sampling(with_params)


def _logit_bias(assignments: Sequence[str]) -> tuple[tuple[int, float], ...]:
    bias = {}
    for assignment in assignments:
        token, _, value = assignment.partition("=")
        try:
            bias[int(token)] = float(value)
        except ValueError:
            raise InputError(f"--logit-bias must be TOKEN_ID=NUMBER, not {assignment!r}") from None
    return tuple(bias.items())


def _grammar(given: Mapping[str, str | None]) -> dict[str, str] | None:
    found = {name: text for name, text in given.items() if text is not None}
    if len(found) > 1:
        raise InputError(f"only one grammar can be given, not {' and '.join('--' + name for name in found)}")
    for name, text in found.items():
        if text.startswith("@"):
            found[name] = read_text(text[1:], "grammar file")
    return found or None


pair_options = _together(
    click.option(
        "--target", metavar="T", help="Target model: a directory, GGUF file or hub id.  [default: the embedded pair]"
    ),
    click.option("--draft", metavar="D", help="Draft model: a directory, GGUF file or hub id."),
)

_place = _together(
    click.option("--dtype", default="auto", show_default=True, help="Type of the weights."),
    click.option("--device", default="auto", show_default=True, help="Where the models run, as torch names it."),
    click.option("--threads", type=int, metavar="N", help="CPU threads of a forward."),
    click.option(
        "--backend",
        type=click.Choice(["auto", "native", "transformers"]),
        default="auto",
        show_default=True,
        help="Whose decoder runs the models.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["auto", "kernels", "packed", "plain", "static"]),
        default="auto",
        show_default=True,
        help="What computes in the native decoder.",
    ),
    click.option("--draft-dtype", default="auto", show_default=True, help="Type of the draft model's weights."),
    click.option("--revision", metavar="R", help="Of the target on the hub: a branch, tag or commit."),
)


def place_options(command: _Command) -> _Command:
    """Where and how the models run; the command gets it as ``place``."""

    @functools.wraps(command)
    def with_place(*args: Any, **values: Any) -> Any:
        place = Place(**{field.name: values.pop(field.name) for field in dataclasses.fields(Place)})
        return command(*args, place=place, **values)

    return _place(with_place)


def to_json(values: Mapping[str, object]) -> str:
    """One line that holds one object, and no control character that a terminal would obey."""
    return json.dumps(values, ensure_ascii=False).translate(_JSON_ESCAPES) + "\n"


def loading_status(screen: Screen, *models: str | None) -> contextlib.AbstractContextManager[Any]:
    """A spinner while models are loaded, but for downloads: these show their own progress, which it would spoil."""
    local = all(name is None or Path(name).exists() for name in models)
    return screen.status("loading") if local else contextlib.nullcontext()


def method_settings(assignments: Sequence[str], draft_tokens: int | None = None) -> dict[str, str]:
    """Option texts by name, from ``--set name=value`` and ``--draft-tokens N``.

    Raises:
        InputError: no ``=``, or an option that is given twice.
    """
    pairs = [] if draft_tokens is None else [("draft_tokens", str(draft_tokens))]
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise InputError(f"--set must be NAME=VALUE, not {assignment!r}")
        pairs.append((name.strip(), value.strip()))
    settings: dict[str, str] = {}
    for name, value in pairs:
        if name in settings:
            raise InputError(f"option {name!r} must be given once, not as {settings[name]!r} and as {value!r}")
        settings[name] = value
    return settings
