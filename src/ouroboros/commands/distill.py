"""``ouroboros distill``: a draft model trained for a target."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import click

from ouroboros.commands.options import Tools, to_json
from ouroboros.errors import InputError
from ouroboros.training.settings import DTYPES, LOSSES, OPTIMIZERS, DistillSettings, stored_settings

__all__ = ["distill"]

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(DistillSettings)}
_Command = Callable[..., Any]
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}


def _option(name: str, text: str, field: str = "", **settings: Any) -> Callable[[_Command], _Command]:
    """An option of a field of DistillSettings, with its default; of several values the default is said in ``text``."""
    field = field or name[2:].replace("-", "_")
    several = settings.get("multiple", False)
    default = None if several else _DEFAULTS[field]
    return click.option(name, field, default=default, show_default=default is not None, help=text, **settings)


@click.command(short_help="Train a draft model for a target.")
@click.option("--target", metavar="T", help="The model to draft for: a directory, GGUF file or hub id.")
@_option("--prompts", "Prompts that the target answers, to learn from. Repeatable.", metavar="F", multiple=True)
@_option("--text", "Plain text to learn from as well. Repeatable.", "texts", metavar="F", multiple=True)
@click.option("--out", metavar="DIR", required=True, help="A new directory for the draft.")
@_option("--draft", "Begin with this draft model.", metavar="D")
@_option("--layers", "Begin with the target cut down to N layers; or N of a new model.", type=int, metavar="N")
@_option("--hidden", "Begin with a new model of this hidden size.", type=int, metavar="N")
@_option("--heads", "Attention heads of the new model.", type=int, metavar="N")
@_option("--inner", "Inner size of the new model's MLPs.", type=int, metavar="N")
@_option("--parameters", "Begin with a new model of N parameters at most, such as 20M.", metavar="N")
@_option("--loss", f"auto tries some; or {', '.join(LOSSES)}, or a mix: forward_kl=0.5,tv=0.5.", metavar="L")
@_option("--steps", "Of the optimiser, all rounds together.", type=int, metavar="N")
@_option("--trial-steps", "Of each trial under --loss auto.  [default: a tenth]", type=int, metavar="N")
@_option("--batch", "Sequences a step.", type=int, metavar="N")
@_option("--micro-batch", "Of these in one forward: fewer need less memory.", type=int, metavar="N")
@_option("--length", "The most tokens of a sequence.", type=int, metavar="N")
@_option("--learning-rate", "Its peak.  [default: 2e-4; of a new model 1e-3]", type=float, metavar="X")
@_option("--optimizer", "AdamW for all, or Muon inside the layers.", type=click.Choice(OPTIMIZERS))
@_option("--rounds", "On-policy rounds: the draft writes, the target scores.", type=int, metavar="N")
@_option("--samples", "The target's answers to each prompt.", type=int, metavar="N")
@_option("--temperature", "Of the answers, in turn. Repeatable.  [default: 1, 0.7]", "temperatures",
         type=float, multiple=True, metavar="X")  # fmt: skip
@_option("--new-tokens", "Of each answer at most.", type=int, metavar="N")
@_option("--held-out", "Prompts that are set aside to measure with.", type=int, metavar="N")
@_option("--measure-temperature", "To measure at. Repeatable.  [default: 0, 1]", "measure_temperatures",
         type=float, multiple=True, metavar="X")  # fmt: skip
@_option("--draft-tokens", "Of the speculative chain that is measured.", "gamma", type=int, metavar="N")
@_option("--pool", "Write the phrases of the target's answers to this file.", metavar="FILE")
@_option("--dtype", "Of the computation: bfloat16 on CUDA, else float32.", type=click.Choice(DTYPES))
@_option("--save-dtype", "Of the file: the target's.", type=click.Choice(DTYPES))
@_option("--device", "Where it runs, as torch names it.", metavar="D")
@_option("--checkpoint-every", "Steps.", type=int, metavar="N")
@_option("--seed", "Of everything that is drawn.", type=int, metavar="N")
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="CPU threads.")
@click.option("--resume", is_flag=True, help="Go on with the interrupted training in --out; no more need be given.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the table.")
@click.pass_context
def distill(context: click.Context, /, threads: int | None, resume: bool, as_json: bool, **values: Any) -> None:
    """Train a draft model on what the target itself writes, and measure what it is worth before and after.

    Prompt files are text, or a JSON object a line with a "prompt" (or "messages", "question", "turns"). The result is
    an ordinary directory in Hugging Face layout for --draft.
    """
    from ouroboros._render import Screen
    from ouroboros._tables import of_distilled

    tools: Tools = context.obj
    given = {name: value for name, value in values.items() if _is_given(context, name)}
    settings = _settings(given, resume)
    screen = Screen()
    with tools.interrupts.at_once(screen.restore_cursor), screen.status("loading"):
        import torch

        from ouroboros.training.distill import distill as train

    if threads is not None:
        torch.set_num_threads(threads)
    with screen.bars() as progress:
        report = train(settings, progress, resume)
    tools.interrupts.check()
    if as_json:
        screen.text(to_json(report.to_dict()))
    else:
        screen.show(of_distilled(report))


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _settings(given: Mapping[str, Any], resume: bool) -> DistillSettings:
    values = dict(given)
    if "parameters" in values:
        values["parameters"] = _count(values["parameters"])
    if resume:
        return stored_settings(values["out"], values)
    if "target" not in values:
        raise InputError("--target is missing: a directory, GGUF file or hub id of the model to draft for")
    return DistillSettings(**{"prompts": (), **values})


def _count(text: str) -> int:
    """20M is twenty million."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", text.strip().lower())
    if found is None:
        raise InputError(f"--parameters must be a number such as 500k, 20M or 1.5B, not {text!r}")
    return int(float(found[1]) * _UNITS[found[2]])
