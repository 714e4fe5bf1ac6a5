"""Text files as phrases: what ``ouroboros pool build`` reads. Directories are walked; what is no text is left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ouroboros.errors import InputError
from ouroboros.phrases.harvest import TextHarvest
from ouroboros.phrases.memory import Memory

__all__ = ["learn", "texts_of"]

MOST_BYTES = 8 << 20  # of a file in a directory; a larger one is data
FIELDS = ("text", "content", "prompt", "completion", "output", "response", "code")  # of a JSON line, all that are texts


def texts_of(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name, text) of each file; of a file of JSON lines of each line.

    Raises:
        InputError: a file that was named cannot be read, or is no UTF-8 text.
    """
    for name in names:
        path = Path(name)
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                inside = file.relative_to(path).parts
                if file.is_file() and not any(part.startswith(".") for part in inside):
                    text = _maybe(file)
                    if text:
                        yield from _parts(file, text)
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except OSError as error:
            raise InputError(f"cannot read {name!r}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{name!r} must be UTF-8 text; byte {error.start} is not") from None
        yield from _parts(path, text)


def _maybe(file: Path) -> str | None:
    try:
        if file.stat().st_size > MOST_BYTES:
            return None
        text = file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return None if "\0" in text else text


def _parts(path: Path, text: str) -> Iterator[tuple[str, str]]:
    if path.suffix not in (".jsonl", ".ndjson"):
        yield str(path), text
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"line {number} of {str(path)!r} is no JSON: {line[:60]!r}") from None
        found = [row[name] for name in FIELDS if isinstance(row, dict) and isinstance(row.get(name), str)]
        if isinstance(row, dict) and isinstance(row.get("messages"), list):
            said = [one.get("content") for one in row["messages"] if isinstance(one, dict)]
            found += [one for one in said if isinstance(one, str)]
        if isinstance(row, str):
            found.append(row)
        if not found:
            raise InputError(f"line {number} of {str(path)!r} has none of {', '.join((*FIELDS, 'messages'))}")
        for one in found:
            if one:
                yield f"{path}:{number}", one


def learn(memory: Memory, texts: Iterable[str], encode: Callable[[str], Sequence[int]]) -> int:
    """Adds the texts' phrases to a memory. Returns how many tokens that were."""
    count = 0
    for text in texts:
        ids = list(encode(text))
        TextHarvest(memory.phrases, len(ids)).learn(ids)
        output = memory.outputs.start()
        output.add(ids)
        output.stop()
        count += len(ids)
    return count
