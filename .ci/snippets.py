"""Run the Python snippets of Markdown files: a file's ```python blocks are one program, top to bottom.

A block opened with anything more than ```python (say ```python no-run) is left out. Line numbers in a traceback are
those of the Markdown file. Each file runs in an empty working directory.

    python .ci/snippets.py README.md ...
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def program(markdown: str) -> str:
    """The ```python blocks, with a blank line for every other line, so that line numbers stay."""
    lines, inside, fenced = [], False, False
    for line in markdown.splitlines():
        if line.startswith("```"):
            inside = not fenced and line.rstrip() == "```python"
            fenced = not fenced
            lines.append("")
        else:
            lines.append(line if inside else "")
    if fenced:
        raise SystemExit("error: a ``` is not closed")
    return "\n".join(lines) + "\n"


def main() -> None:
    for path in [Path(name).resolve() for name in sys.argv[1:]]:
        if not path.exists():
            print(f"{path.name}: no such file, nothing to run")
            continue
        source = program(path.read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as empty:
            os.chdir(empty)
            exec(compile(source, str(path), "exec"), {"__name__": "__main__"})
            os.chdir("/")
        print(f"{path.name}: {sum(map(bool, map(str.strip, source.splitlines())))} lines of Python ran")


if __name__ == "__main__":
    main()
