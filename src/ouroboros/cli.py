"""The command line: options to parameters, errors to one line and an exit status. Knows nothing of how text is made.

Exit status: 0 done, 2 bad input or an output that cannot be written, 130 interrupted. What is imported at the top must
stay quick: ``ouroboros --version`` loads neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from ouroboros._version import __version__
from ouroboros.config import METHODS, MethodOptions, SamplingParams, options_from_strings
from ouroboros.errors import InputError, OuroborosError

if TYPE_CHECKING:
    from ouroboros._render import Screen
    from ouroboros.generate import Decoder, GenerationResult

__all__ = ["main"]

_DEFAULTS = SamplingParams()
_MOST_THREADS = 1024
_DEMO_SEED = 1
_INTERRUPTED = 130
_JSON_ESCAPES = {n: f"\\u{n:04x}" for n in range(0x7F, 0xA0)}  # json leaves these in, and a terminal obeys some


class _Interrupts:
    """Ctrl-C raises KeyboardInterrupt and is remembered: libraries make errors of their own of it, or swallow it.

    Where the process is this command line's own, an interrupt may also end it on the spot (``at_once``).
    """

    def __init__(self, owns_process: bool) -> None:
        self.seen = False
        self._owns_process = owns_process
        self._tidy: Callable[[], None] | None = None
        self._previous: Any = None

    def __enter__(self) -> _Interrupts:
        # A process started with SIGINT ignored, as a shell does for a job in the background, goes on ignoring it.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.getsignal(signal.SIGINT)
            if self._previous is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._previous is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._previous)

    @contextlib.contextmanager
    def at_once(self, tidy: Callable[[], None]) -> Iterator[None]:
        """While there is nothing to keep: torch's import aborts with a C++ trace when an exception comes into it."""
        self._tidy = tidy if self._owns_process else None
        try:
            yield
        finally:
            self._tidy = None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.seen = True
        if self._tidy is not None:
            self._tidy()
            os._exit(_INTERRUPTED)
        raise KeyboardInterrupt

    def check(self) -> None:
        if self.seen:
            raise KeyboardInterrupt

    def end_process(self) -> None:
        """After an interrupt, end here: one inside ``exec``, which dataclasses use, makes Python kill itself at its end
        although it was handled, and a second one would find the interpreter half taken down."""
        if self.seen and self._owns_process:
            os._exit(_INTERRUPTED)


class _Commands(click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            raise click.UsageError(f"command must be one of {', '.join(sorted(self.commands))}, not {args[0]!r}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ouroboros", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Lossless speculative decoding of large language models, drafting phrase by phrase."""
    if ctx.invoked_subcommand is None:
        raise click.UsageError(f"no command: give one of {', '.join(sorted(cli.commands))}")


@cli.command(short_help="Continue a prompt.")
@click.argument("prompt", required=False)
@click.option("--prompt-file", metavar="F", help="Take the prompt from a UTF-8 file, byte for byte.")
@click.option("--target", metavar="T", help="Target model: a directory or hub id.  [default: the embedded pair]")
@click.option("--draft", metavar="D", help="Draft model: a directory or hub id.")
@click.option("--method", type=click.Choice(list(METHODS)), default="ouroboros", show_default=True)
@click.option("--max-new-tokens", type=int, metavar="N", default=_DEFAULTS.max_new_tokens, show_default=True)
@click.option("--temperature", type=float, default=_DEFAULTS.temperature, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int, default=_DEFAULTS.top_k, show_default=True, help="0 keeps all tokens.")
@click.option("--top-p", type=float, default=_DEFAULTS.top_p, show_default=True)
@click.option("--min-p", type=float, default=_DEFAULTS.min_p, show_default=True)
@click.option("--repetition-penalty", type=float, default=_DEFAULTS.repetition_penalty, show_default=True)
@click.option("--seed", type=int, default=_DEFAULTS.seed, help="Of the draws; by default one is drawn and reported.")
@click.option("--stop", multiple=True, metavar="S", help="End the output where this text begins. Repeatable.")
@click.option("--ignore-eos", is_flag=True, default=_DEFAULTS.ignore_eos, help="Go on past end-of-sequence tokens.")
@click.option("--draft-tokens", type=int, metavar="N", help="Short for --set draft_tokens=N.")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="An option of the method. Repeatable.")
@click.option("--dtype", default="auto", show_default=True, help="Type of the weights.")
@click.option("--device", default="auto", show_default=True, help="Where the models run, as torch names it.")
@click.option("--threads", type=int, metavar="N", help="CPU threads of a forward.")
@click.option("--pool", metavar="FILE", help="Phrase pool: read it if it exists, and save it at the end.")
@click.option("--pool-read-only", is_flag=True, help="Do not save the pool.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the text.")
@click.pass_obj
def generate(
    interrupts: _Interrupts,
    prompt: str | None,
    prompt_file: str | None,
    target: str | None,
    draft: str | None,
    method: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    seed: int | None,
    stop: tuple[str, ...],
    ignore_eos: bool,
    draft_tokens: int | None,
    assignments: tuple[str, ...],
    dtype: str,
    device: str,
    threads: int | None,
    pool: str | None,
    pool_read_only: bool,
    as_json: bool,
) -> None:
    """Continue PROMPT, or standard input if it is -, or the text of --prompt-file."""
    from ouroboros._render import Screen

    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
        ignore_eos=ignore_eos,
    )
    options = options_from_strings(method, _settings(assignments, draft_tokens))
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise InputError(f"--threads must be a whole number from 1 to {_MOST_THREADS}, not {threads}")
    if pool_read_only and pool is None:
        raise InputError("--pool-read-only needs a --pool FILE to read")
    text = _read_prompt(prompt, prompt_file)
    screen = Screen()
    # A download shows its own progress, which a spinner would spoil.
    local = all(name is None or Path(name).is_dir() for name in (target, draft))
    status = screen.status("loading") if local else contextlib.nullcontext()
    with interrupts.at_once(screen.restore_cursor), status:
        decoder = _load(target, draft, method, options, dtype, device, threads, pool, pool_read_only)
    with contextlib.closing(decoder):
        if not as_json:
            screen.legend()
        result, interrupted = _stream(decoder, text, params, None if as_json else screen, interrupts)
        if as_json:
            screen.text(_as_json(result))
        else:
            screen.figures(result.stats, " (interrupted)" if interrupted else "")
    if interrupted:
        raise KeyboardInterrupt


@cli.command(short_help="Show the method at work on the embedded pair of models.")
@click.option("--max-new-tokens", type=int, metavar="N", default=96, show_default=True)
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0 is greedy.")
@click.pass_obj
def demo(interrupts: _Interrupts, max_new_tokens: int, temperature: float) -> None:
    """Complete three prompts with the embedded pair, then compare all methods on them."""
    from ouroboros._render import Screen
    from ouroboros.bench.demo import compare, demo_prompts

    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, seed=_DEMO_SEED)
    prompts = demo_prompts()
    screen = Screen()

    def load(method: str) -> Decoder:
        # One thread: models this small gain nothing from more, and lose much where another program wants the cores.
        return _load(None, None, method, options_from_strings(method, {}), "float32", "cpu", 1, False, False)

    with interrupts.at_once(screen.restore_cursor), screen.status("loading"):
        decoder = load("ouroboros")
    with contextlib.closing(decoder):
        screen.legend()
        for prompt in prompts:
            screen.demo_prompt(prompt.task_id, prompt.text)
            result, interrupted = _stream(decoder, prompt.text, params, screen, interrupts)
            if interrupted:
                raise KeyboardInterrupt
            screen.demo_figures(result.stats)
    with screen.status("measuring") as progress:
        rows = compare(load, prompts, params, progress)
    interrupts.check()
    how = "greedy" if params.greedy else f"temperature {temperature:g}, seed {_DEMO_SEED}"
    screen.demo_table(rows, f"{len(prompts)} prompts, up to {max_new_tokens} new tokens each, {how}")


def _load(
    target: str | None,
    draft: str | None,
    method: str,
    options: MethodOptions,
    dtype: str,
    device: str,
    threads: int | None,
    pool: str | bool | None,
    pool_read_only: bool,
) -> Decoder:
    """The decoder; the tests put a fake in place of this function."""
    from ouroboros.pairing import load

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return load(
        target,
        draft,
        method=method,
        dtype=dtype,
        device=device,
        pool=pool,
        pool_read_only=pool_read_only,
        options=options,
    )


def _stream(
    decoder: Decoder, prompt: str, params: SamplingParams, screen: Screen | None, interrupts: _Interrupts
) -> tuple[GenerationResult, bool]:
    """Generate, showing the text as it comes; the result as far as it got, and whether Ctrl-C ended it."""
    interrupted = False
    stream = decoder.stream(prompt, params=params)
    try:
        with stream:
            for chunk in stream:
                if screen is not None:
                    screen.pieces(chunk.pieces)
                interrupts.check()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if screen is not None:
            screen.end_text()
    return stream.result, interrupted


def _as_json(result: GenerationResult) -> str:
    names = ("text", "token_ids", "prompt_token_ids", "finish_reason")
    values: dict[str, object] = {name: getattr(result, name) for name in names}
    text = json.dumps({**values, "stats": result.stats.to_dict()}, ensure_ascii=False)
    return text.translate(_JSON_ESCAPES) + "\n"


def _settings(assignments: Sequence[str], draft_tokens: int | None) -> dict[str, str]:
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


def _read_prompt(prompt: str | None, prompt_file: str | None) -> str:
    """The prompt from where the user says, with no byte changed.

    Raises:
        InputError: given twice or not at all, unreadable, or not UTF-8.
    """
    if prompt is None and prompt_file is None:
        raise InputError("no prompt: give PROMPT, --prompt-file F, or - for standard input")
    if prompt is not None and prompt_file is not None:
        raise InputError(f"prompt must be given once, not as {prompt[:40]!r} and as --prompt-file {prompt_file!r}")
    if prompt is not None and prompt != "-":
        return prompt
    name = "standard input" if prompt_file is None else f"prompt file {prompt_file!r}"
    try:
        if prompt_file is not None:
            data = Path(prompt_file).read_bytes()
        elif sys.stdin is None:
            raise InputError("cannot read standard input: it is closed")
        else:
            data = sys.stdin.buffer.read()
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} must be UTF-8 text; byte {error.start} ({data[error.start]:#04x}) is not") from None


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status, for ``sys.exit``. Without ``args`` an interrupt ends the process here."""
    interrupts = _Interrupts(owns_process=args is None)
    with interrupts:
        try:
            status = _run(sys.argv[1:] if args is None else args, interrupts)
            if sys.stdout is not None:
                sys.stdout.flush()
        except KeyboardInterrupt:
            status = _INTERRUPTED
        except Exception as error:
            # An interrupt in the middle of an import can come out as that library's own error.
            message = _message(error)
            if interrupts.seen:
                status = _INTERRUPTED
            elif message is None:
                raise
            else:
                status = _fail(message)
    _drop_unwritable(sys.stdout)
    _drop_unwritable(sys.stderr)
    interrupts.end_process()
    return status


def _run(args: Sequence[str], interrupts: _Interrupts) -> int:
    # Not click's own main(): that one ends the process by itself on a broken pipe, with another status.
    try:
        with cli.make_context("ouroboros", list(args), obj=interrupts) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    return 0


def _message(error: Exception) -> str | None:
    """What to tell the user, or None for an error that is nobody's input: a defect, which shows its traceback."""
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OuroborosError):
        return str(error)
    if isinstance(error, BrokenPipeError):
        return "the output was closed before its end"
    if isinstance(error, OSError):
        where = "" if error.filename is None else f": {error.filename!r}"
        return f"{error.strerror or error}{where}"
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return f"not enough memory ({text})" if text else "not enough memory"
    if isinstance(error, AssertionError | RuntimeError) and ("CUDA" in text or "NVIDIA" in text):
        return f"the device cannot be used ({text})"
    return None


def _fail(message: str) -> int:
    from ouroboros._render import showable

    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"ouroboros: error: {' '.join(showable(message).split())}\n")
            sys.stderr.flush()
    return 2


def _drop_unwritable(stream: Any) -> None:
    """Send what a closed pipe does not take to nowhere, or the interpreter complains of it at its end."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
