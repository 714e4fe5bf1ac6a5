"""Results made small enough to be kept beside the tables that are made of them. It knows the lines' fields alone.

Of each run the steps after the first are put in order, and all seconds of steps are rounded to three digits: what
tables and plots ask of them (how long a token took at the median, how many tokens a step yielded, when the first came)
stays as it is, and the file is a tenth as long.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

from ouroboros.bench.records import read_results
from ouroboros.errors import InputError
from ouroboros.files import parse_json

__all__ = ["SUFFIX", "compact"]

SUFFIX = ".xz"
_DIGITS = 3


def compact(results: Path, out: Path) -> int:
    """Writes ``out``, which ``bench report`` and ``bench compare`` take like the file that it is made of.

    Returns:
        Its bytes.

    Raises:
        InputError: no results, a name without ``.xz``, or a file that cannot be written.
    """
    if out.suffix != SUFFIX:
        raise InputError(f"the name of a compact file must end in {SUFFIX}, not {str(out)!r}")
    closed = read_results(results).closed
    text = results.read_bytes()[:closed].decode()
    lines = [json.dumps(_small(parse_json(line)), separators=(",", ":")) + "\n" for line in text.splitlines()]
    data = lzma.compress("".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME)
    try:
        out.write_bytes(data)
    except OSError as error:
        raise InputError(f"cannot write {str(out)!r}: {error.strerror}") from None
    return len(data)


def _small(line: dict[str, Any]) -> dict[str, Any]:
    if "steps" in line:
        steps = [[tokens, _rounded(micros)] for tokens, micros in line["steps"]]
        line["steps"] = steps[:1] + sorted(steps[1:])
    return line


def _rounded(micros: int) -> int:
    return int(float(f"{micros:.{_DIGITS - 1}e}"))
