"""Recorded generations: what a model wrote for a prompt, with the seed and temperature that it was drawn with.

They are training text, phrases for a pool, and what acceptance is replayed from. Kept as JSON lines, appended one by
one, so that an interrupted run loses none. It knows nothing of training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ouroboros.config import MAX_SEED
from ouroboros.errors import InputError
from ouroboros.files import parse_json
from ouroboros.generate import Decoder
from ouroboros.phrases.harvest import TextHarvest
from ouroboros.phrases.pool import PhrasePool
from ouroboros.training.examples import Example

__all__ = ["Job", "Record", "jobs_for", "kept_records", "phrases_of", "read_records", "record"]


@dataclass(frozen=True, slots=True)
class Record:
    """``prompt``, ``tokens``: ids, the new ones with a closing end-of-sequence; ``budget``: how many there might be."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    seed: int
    temperature: float
    budget: int

    @property
    def example(self) -> Example:
        return Example((*self.prompt, *self.tokens), len(self.prompt))


@dataclass(frozen=True, slots=True)
class Job:
    """A generation to be made."""

    prompt: tuple[int, ...]
    seed: int
    temperature: float


def jobs_for(
    prompts: Sequence[Sequence[int]], temperatures: Sequence[float], samples: int, seed: int, every: bool = False
) -> list[Job]:
    """``samples`` generations for each prompt, the temperatures in turn; ``every``: at every temperature instead.

    Each has a seed of its own, a function of ``seed`` and its number.
    """
    jobs: list[Job] = []
    for number, prompt in enumerate(prompts):
        for sample in range(len(temperatures) if every else samples):
            temperature = temperatures[sample if every else (number + sample) % len(temperatures)]
            own = (seed * 1_000_003 + len(jobs)) % (MAX_SEED + 1)
            jobs.append(Job(tuple(prompt), own, temperature))
    return jobs


def kept_records(path: Path, jobs: Sequence[Job]) -> list[Record]:
    """The records of ``path``, which are those of the first jobs.

    Raises:
        InputError: a file that was written for other jobs.
    """
    found = read_records(path)
    for one, job in zip(found, jobs, strict=False):
        if (one.prompt, one.seed, one.temperature) != (job.prompt, job.seed, job.temperature):
            raise InputError(f"{str(path)!r} was written for other prompts: choose another directory")
    return found[: len(jobs)]


def record(
    decoder: Decoder, jobs: Sequence[Job], new_tokens: int, path: Path, progress: Callable[[int, int], None]
) -> list[Record]:
    """Runs the jobs that ``path`` does not hold yet, appends each, and returns all.

    Args:
        progress: called with the jobs done and the number of jobs.

    Raises:
        InputError: a prompt too long for the target, or a file that was written for other jobs.
    """
    found = kept_records(path, jobs)
    with path.open("a", encoding="utf-8") as file:
        progress(len(found), len(jobs))
        for job in jobs[len(found) :]:
            result = decoder.generate(
                list(job.prompt), max_new_tokens=new_tokens, temperature=job.temperature, seed=job.seed
            )
            found.append(Record(job.prompt, result.token_ids, job.seed, job.temperature, new_tokens))
            file.write(json.dumps(asdict(found[-1]), separators=(",", ":")) + "\n")
            file.flush()
            progress(len(found), len(jobs))
    return found


def read_records(path: Path) -> list[Record]:
    """The records of a file, none where there is no file. A last line that was cut short is cut away from the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        path.write_bytes(whole)
    records = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = parse_json(line)
            records.append(Record(**{**row, "prompt": tuple(row["prompt"]), "tokens": tuple(row["tokens"])}))
        except (ValueError, TypeError, KeyError):
            raise InputError(f"line {number} of {str(path)!r} is no recorded generation: {line[:60]!r}") from None
    return records


def phrases_of(records: Iterable[Record]) -> PhrasePool:
    """A pool that has seen the records' prompts and generations, as if they had been decoded with it."""
    pool = PhrasePool()
    for one in records:
        TextHarvest(pool, len(one.prompt)).learn((*one.prompt, *one.tokens))
    return pool
