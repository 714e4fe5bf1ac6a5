"""The command line: the commands under one name, and the loading that they share.

What is imported at the top, here and in ``commands``, must stay quick: ``ouroboros --version`` loads neither torch nor
transformers.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from ouroboros._version import __version__
from ouroboros.commands.audit import audit
from ouroboros.commands.bench import bench
from ouroboros.commands.chat import chat
from ouroboros.commands.demo import demo
from ouroboros.commands.distill import distill
from ouroboros.commands.doctor import doctor
from ouroboros.commands.generate import generate
from ouroboros.commands.options import Place, Tools
from ouroboros.commands.pool import pool as pools
from ouroboros.commands.process import keep_loaded, run
from ouroboros.commands.profile import profile
from ouroboros.commands.serve import serve
from ouroboros.commands.tune import tune
from ouroboros.config import MethodOptions, options_from_strings

if TYPE_CHECKING:
    from ouroboros.generate import Decoder

__all__ = ["main"]


_COMPLETE = "_OUROBOROS_COMPLETE"  # what click's completion scripts set: `_OUROBOROS_COMPLETE=bash_source ouroboros`


class _Commands(click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            near = difflib.get_close_matches(args[0], self.commands, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"command must be one of {', '.join(sorted(self.commands))}, not {args[0]!r}{hint}")
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
        click.echo(ctx.get_help())


for _command in (generate, chat, serve, audit, profile, tune, bench, distill, doctor, pools, demo):
    cli.add_command(_command)


def _load(
    target: str | None,
    draft: str | None,
    method: str,
    options: MethodOptions | Mapping[str, str],
    place: Place,
    pool: str | bool | None,
    pool_read_only: bool,
) -> Decoder:
    """The decoder; the tests put a fake in place of this function."""
    from ouroboros.pairing import load

    decoder = load(
        target,
        draft,
        method=method,
        dtype=place.dtype,
        device=place.device,
        backend=place.backend,
        engine=place.engine,
        draft_dtype=place.draft_dtype,
        threads=place.threads,
        revision=place.revision,
        pool=pool,
        pool_read_only=pool_read_only,
        options=options_from_strings(method, options) if isinstance(options, Mapping) and options else options or None,
    )
    keep_loaded()
    return decoder


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status, for ``sys.exit``. Without ``args`` an interrupt ends the process here."""
    words = list(sys.argv[1:] if args is None else args)
    return run(lambda interrupts: _run(words, Tools(interrupts, _load)), owns_process=args is None)


def _run(args: list[str], tools: Tools) -> int:
    # Not click's own main(): that one ends the process by itself on a broken pipe, with another status.
    if wanted := os.environ.get(_COMPLETE):
        from click.shell_completion import shell_complete

        return shell_complete(cli, {"obj": tools}, "ouroboros", _COMPLETE, wanted)
    try:
        with cli.make_context("ouroboros", args, obj=tools) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
