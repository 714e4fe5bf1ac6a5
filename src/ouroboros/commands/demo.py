"""``ouroboros demo``: plain decoding and Ouroboros write the same texts, one after the other, beside a clock."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import click

from ouroboros.commands.options import Place, Tools, loading_status, pair_options, place_options
from ouroboros.config import SamplingParams
from ouroboros.errors import InputError

if TYPE_CHECKING:
    from ouroboros._render import Screen
    from ouroboros.bench.demo import DemoPrompt
    from ouroboros.generate import Decoder
    from ouroboros.stream import GenerationResult

__all__ = ["demo"]

_SEED = 1
_WARM_UP = SamplingParams(max_new_tokens=4)
_NAMES = {"autoregressive": "plain decoding", "ouroboros": "Ouroboros"}
_OWN = "Your own pair: ouroboros demo --target T --draft D  (directories, GGUF files or hub ids)"
_GROWN = (
    "The embedded pair of small models, grown to {sizes} parameters in {dtype}.\n"
    "Grown: enlarged with weights that change no output, so that a forward takes as long as that of a model of\n"
    "this size, while the text, and how well the draft model guesses it, stay the small pair's."
)


@click.command(short_help="See how much faster the same text is written, with the embedded models or your own.")
@pair_options
@click.option("--max-new-tokens", type=int, metavar="N", default=96, show_default=True)
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0 is greedy.")
@click.option("--all", "all_methods", is_flag=True, help="Measure the other methods too.")
@place_options
@click.pass_obj
def demo(
    tools: Tools,
    target: str | None,
    draft: str | None,
    max_new_tokens: int,
    temperature: float,
    all_methods: bool,
    place: Place,
) -> None:
    """Complete three prompts by plain decoding and by Ouroboros in turn, with a clock, and draw how fast each was.

    Without --target it takes the embedded pair, grown to the cost of a larger one.
    """
    from ouroboros._render import Screen
    from ouroboros._tables import of_demo
    from ouroboros.bench.demo import PLAIN, beside, demo_prompts, others, row_of

    # The small models end a function after 20 to 40 tokens: too few to see a speed.
    params = SamplingParams(
        max_new_tokens=max_new_tokens, temperature=temperature, seed=_SEED, ignore_eos=target is None
    )
    prompts = demo_prompts()
    screen = Screen()
    with tools.interrupts.at_once(screen.restore_cursor), loading_status(screen, target, draft):
        decoder = _open(tools, target, draft, place)
        plain = beside(decoder, PLAIN)
        for one in (plain, decoder):
            one.generate(prompts[0].text, params=_WARM_UP)
    with contextlib.closing(decoder):
        if target is None:
            sizes = " and ".join(
                f"{model.info.parameters / 1e6:.0f} M" for model in (decoder.target, decoder.draft) if model
            )
            screen.line(_GROWN.format(sizes=sizes, dtype=decoder.target.info.dtype))
        screen.legend()
        results: dict[str, list[GenerationResult]] = {PLAIN: [], decoder.method: []}
        for prompt in prompts:
            screen.demo_prompt(prompt.task_id, prompt.text)
            for name, one in ((PLAIN, plain), (decoder.method, decoder)):
                screen.line(f"\n{_NAMES.get(name, name)}", "bold")
                results[name].append(_write(one, prompt, params, screen))
                tools.interrupts.check()
        with screen.status("measuring the other methods"):
            for name in others(decoder) if all_methods else ():
                other = beside(decoder, name)
                results[name] = [other.generate(prompt.text, params=params) for prompt in prompts]
    tools.interrupts.check()
    rows = [row_of(name, found, results[PLAIN]) for name, found in results.items()]
    how = "greedy" if params.greedy else f"temperature {temperature:g}, seed {_SEED}"
    screen.show(of_demo(rows, _NAMES, f"{len(prompts)} texts of up to {max_new_tokens} tokens, {how}", screen.styles))
    if target is None:
        screen.line(_OWN)


def _open(tools: Tools, target: str | None, draft: str | None, place: Place) -> Decoder:
    if target is not None:
        return tools.load(target, draft, "ouroboros", {}, place, None, False)
    if draft is not None:
        raise InputError(f"draft {draft!r} needs a target; without one the embedded pair is used")
    if place.backend == "transformers" or place.draft_dtype != "auto" or place.revision is not None:
        raise InputError("--backend transformers, --draft-dtype and --revision need a --target: growth is native")
    from ouroboros.bench.demo import grown_pair

    return grown_pair(place.dtype, place.device, place.engine, place.threads)


def _write(decoder: Decoder, prompt: DemoPrompt, params: SamplingParams, screen: Screen) -> GenerationResult:
    """The text as it comes, each line of it behind the seconds that had passed when it began."""
    clock = Clock()
    stream = decoder.stream(prompt.text, params=params)
    with stream:
        for chunk in stream:
            screen.pieces(clock.lines(chunk.pieces))
    seconds, result = clock.seconds, stream.result
    if not clock.at_start:
        screen.text("\n")
    screen.line(
        f"{seconds:6.2f} s │ {result.stats.new_tokens} tokens, {result.stats.tokens_per_second:.1f} a second, "
        f"{result.stats.tokens_per_target_forward:.2f} for each forward of the target model",
        "dim",
    )
    return result


class Clock:
    """A stopwatch, begun when it is made.

    Attributes:
        at_start: whether the last line has been ended.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._begun = now()
        self.at_start = True

    @property
    def seconds(self) -> float:
        return self._now() - self._begun

    def lines(self, pieces: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """The (text, source) pairs, with the time of the clock before what begins a line."""
        for text, source in pieces:
            for line in text.splitlines(keepends=True):
                if self.at_start:
                    yield f"{self.seconds:6.2f} s │ ", ""
                yield line, source
                self.at_start = line.endswith("\n")
