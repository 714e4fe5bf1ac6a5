"""``ouroboros pool``: phrase pools as files: made of texts, looked at, merged, made smaller."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from ouroboros.commands.options import to_json
from ouroboros.errors import InputError

if TYPE_CHECKING:
    from ouroboros.phrases.memory import Memory
    from ouroboros.text import Tokenizer

__all__ = ["pool"]

MOST_ID = 2**31 - 1  # of any vocabulary
MOST_KEYS = 300_000


@click.group(short_help="Make, show, merge and prune phrase pools.")
def pool() -> None:
    """Phrase pools as files: what a decoder or a server begins with."""


@pool.command()
@click.argument("out")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--target", metavar="T", help="Whose tokenizer counts: a directory or hub id.  [default: the embedded]")
@click.option("--max-keys", type=int, metavar="N", default=MOST_KEYS, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def build(out: str, files: tuple[str, ...], target: str | None, max_keys: int, as_json: bool) -> None:
    """Write the phrases of FILE... to OUT: text, code, JSON lines (.jsonl), or directories of them."""
    from ouroboros.phrases.files import learn, texts_of
    from ouroboros.phrases.storage import save_pool

    memory = _empty(max_keys)
    words = _words(target)
    names: Counter[str] = Counter()

    def texts() -> Any:
        for name, text in texts_of(files):
            names[name] += 1
            yield text

    tokens = learn(memory, texts(), words.encode)
    if not tokens:
        raise InputError(f"no text in {', '.join(map(repr, files[:3]))}")
    save_pool(memory, out, words.fingerprint)
    _show({"pool": out, "texts": len(names), "tokens": tokens, **_counts(memory)}, as_json)


@pool.command()
@click.argument("file", metavar="POOL")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(file: str, as_json: bool) -> None:
    """Say what POOL holds."""
    memory, fingerprint = _read(file)
    origins = Counter(phrase.origin.value for _, phrase in memory.phrases.items())
    used = sum(phrase.accepted for _, phrase in memory.phrases.items())
    values = {"pool": file, "vocabulary": fingerprint, **_counts(memory)}
    _show({**values, "accepted_tokens": used, "phrases_by_origin": dict(origins)}, as_json)


@pool.command()
@click.argument("out")
@click.argument("pools", nargs=-1, required=True, metavar="POOL...")
@click.option("--max-keys", type=int, metavar="N", default=MOST_KEYS, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def merge(out: str, pools: tuple[str, ...], max_keys: int, as_json: bool) -> None:
    """Write all that POOL... know to OUT; where there are too many keys, those of the last pools stay."""
    from ouroboros.phrases.storage import save_pool

    memory, bound = _empty(max_keys), None
    for name in pools:
        found, fingerprint = _read(name)
        if bound is not None and fingerprint != bound:
            raise InputError(f"{name!r} is a phrase pool of another vocabulary than {pools[0]!r}")
        bound = fingerprint
        memory.take_in(found)
    assert bound is not None
    save_pool(memory, out, bound)
    _show({"pool": out, "merged": len(pools), **_counts(memory)}, as_json)


@pool.command()
@click.argument("file", metavar="POOL")
@click.option("--max-keys", type=int, metavar="N", required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def prune(file: str, max_keys: int, as_json: bool) -> None:
    """Keep N keys of POOL: those whose phrases were of use, then the newest."""
    from ouroboros.phrases.lock import PoolLock
    from ouroboros.phrases.storage import save_pool

    memory = _empty(max_keys)
    with PoolLock(file) as lock:
        found, fingerprint = _read(file)
        rows: dict[tuple[int, ...], list[Any]] = {}
        for key, phrase in found.phrases.items():
            rows.setdefault(key, []).append(phrase)
        useful = [key for key, phrases in rows.items() if any(phrase.accepted for phrase in phrases)]
        rest = [key for key in rows if not any(phrase.accepted for phrase in rows[key])]
        kept = [*rest, *useful][-max_keys:]  # what is useful was put last, the newest of each at its end
        for key in kept:
            for phrase in rows[key]:
                memory.phrases.restore(key, phrase)
        memory.outputs, memory.successors, memory.predictions = found.outputs, found.successors, found.predictions
        save_pool(memory, file, fingerprint, lock)
    _show({"pool": file, "keys_before": found.phrases.keys, **_counts(memory)}, as_json)


def _empty(max_keys: int) -> Memory:
    from ouroboros.phrases.memory import Memory
    from ouroboros.phrases.pool import PhrasePool

    if not 1 <= max_keys <= MOST_ID:
        raise InputError(f"--max-keys must be a whole number from 1 to {MOST_ID}, not {max_keys}")
    return Memory(PhrasePool(max_keys))


def _words(target: str | None) -> Tokenizer:
    from ouroboros.models.loading import resolve
    from ouroboros.pairing import EMBEDDED
    from ouroboros.text import Tokenizer

    path = EMBEDDED / "target" if target is None else resolve(target, None, None)
    found = Tokenizer.from_directory(path)
    if found is None:
        raise InputError(f"{str(target)!r} has no tokenizer")
    return found


def _read(file: str) -> tuple[Memory, str]:
    from ouroboros.phrases.storage import fingerprint_of, load_pool

    bound = fingerprint_of(file)
    return load_pool(file, bound, MOST_ID), bound


def _counts(memory: Memory) -> dict[str, int]:
    pool = memory.phrases
    found = {"keys": pool.keys, "phrases": len(pool), "predictions": len(memory.predictions)}
    return {**found, "output_tokens": len(memory.outputs), "successors": len(memory.successors)}


def _show(values: dict[str, Any], as_json: bool) -> None:
    from ouroboros._render import Screen

    screen = Screen()
    if as_json:
        screen.text(to_json(values))
        return
    for name, value in values.items():
        screen.text(f"{name.replace('_', ' ')}: {value}\n")
