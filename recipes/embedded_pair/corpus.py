"""The text that the embedded pair is trained on: Python source of this machine under permissive licences, and GSM8K.

Sources are the standard library and the installed packages whose licence, as importlib.metadata tells it, is
permissive. Beside whole files, module-level functions with a docstring are documents of their own, so that the models
learn where a function ends; short ones once more with head and body apart (functions.py), for the lessons that
come last. What shares 13 consecutive words with an evaluation prompt or solution is left out. This file knows nothing
of tokens and models.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from recipes.embedded_pair.functions import Function, short_functions, whole_functions

PERMISSIVE = re.compile(r"\b(MIT|BSD|0BSD|Apache|PSF|Python Software Foundation|ISC|ISCL|Zlib|HPND|CNRI|Unlicense)\b")
COPYLEFT = re.compile(r"\b(A?L?GPL|MPL|Mozilla|EPL|CDDL|EUPL)")
SMALLEST, LARGEST = 200, 150_000  # bytes of a file
GRAM, LEAST_WORDS = 13, 8  # a shorter solution is looked for whole, if it has so many words
FIELDS = ("prompt", "canonical_solution", "text", "code", "question", "answer", "turns")
SKIPPED = ("_vendor", "vendored", "site-packages/ouroboros", "lib2to3/tests", "/idlelib/", "/turtledemo/")


@dataclass(frozen=True)
class Source:
    """Where text is from: a name, its licence, and its files."""

    name: str
    licence: str
    files: tuple[Path, ...] = ()


@dataclass
class Corpus:
    """``documents``: (source, text). ``functions``: short functions of the same sources;
    ``school``: questions with answers, which are documents too. ``counts``: characters of each
    source that were taken. ``removed``: documents left out for their overlap with evaluation sets, by source."""

    documents: list[tuple[str, str]]
    licences: dict[str, str]
    functions: list[Function] = field(default_factory=list)
    school: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)

    def facts(self) -> dict[str, object]:
        """What a model card says of it."""
        rows = [
            {"source": name, "licence": self.licences[name], "characters": count, "removed": self.removed[name]}
            for name, count in self.counts.most_common()
        ]
        counts = {"documents": len(self.documents), "functions": len(self.functions), "school": len(self.school)}
        return {"sources": rows, **counts, "removed": self.removed.total()}


def build_corpus(
    gsm8k: Path | None, evaluation: Sequence[Path], most: int, seed: int, workers: int, only: Sequence[str] = ()
) -> Corpus:
    """Reads and filters everything.

    Args:
        gsm8k: GSM8K's training part. evaluation: JSON lines of what must not be in it. most: characters of one source.
            only: names of sources, all without any.
    """
    found = [source for source in sources() if not only or source.name in only]
    grams = frozenset(gram for path in evaluation for text in evaluation_texts(path) for gram in text_grams(text))
    corpus = Corpus([], {source.name: source.licence for source in found})
    jobs = [(source, most, seed) for source in found]
    seen: set[bytes] = set()
    bodies: set[bytes] = set()
    with ProcessPoolExecutor(workers, initializer=_remember, initargs=(grams,)) as pool:
        for source, (texts, functions, removed) in zip(found, pool.map(_read_source, jobs), strict=True):
            _add(corpus, source.name, texts, seen)
            corpus.functions += [one for one in functions if _is_new(one.body, bodies)]
            corpus.removed[source.name] += removed
    if gsm8k is not None:
        _remember(grams)
        texts = list(_gsm8k(gsm8k))
        clean = [text for text in texts if not overlaps(text)]
        corpus.licences["GSM8K, training part"] = "MIT"
        _add(corpus, "GSM8K, training part", clean, seen)
        corpus.school += clean
        corpus.removed["GSM8K, training part"] += len(texts) - len(clean)
    random.Random(seed).shuffle(corpus.documents)
    random.Random(seed).shuffle(corpus.functions)
    return corpus


def _add(corpus: Corpus, name: str, texts: Iterable[str], seen: set[bytes]) -> None:
    for text in texts:
        if _is_new(text, seen):
            corpus.documents.append((name, text))
            corpus.counts[name] += len(text)


def _is_new(text: str, seen: set[bytes]) -> bool:
    """Whether a text is none of those seen, white space aside; it is one of them then."""
    key = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=12).digest()
    new = key not in seen
    seen.add(key)
    return new


# -------------------------------------------------------------------------------------------------------- sources


def sources() -> list[Source]:
    """The standard library and every installed package with a permissive licence, by name."""
    library = Path(sysconfig.get_path("stdlib"))
    inside = [path for path in library.rglob("*.py") if not {"site-packages", "dist-packages"} & set(path.parts)]
    found = {"CPython standard library": Source("CPython standard library", "PSF-2.0", tuple(sorted(inside)))}
    for package in importlib.metadata.distributions():
        name = str(package.metadata["Name"])
        licence = licence_of(package.metadata)
        if licence is None or name == "ouroboros-decoding":
            continue
        files = sorted(Path(str(file.locate())) for file in package.files or () if file.suffix == ".py")
        if files:
            found[name] = Source(name, licence, tuple(files))
    return [found[name] for name in sorted(found)]


def licence_of(metadata: importlib.metadata.PackageMetadata) -> str | None:
    """A permissive licence as the package names it, else None."""
    expressions, licences, classifiers = (
        [str(text).strip() for text in metadata.get_all(name) or []]
        for name in ("License-Expression", "License", "Classifier")
    )
    classified = [text.split("::")[-1].strip() for text in classifiers if text.startswith("License ::")]
    first = [text.splitlines()[0] for text in licences if text]
    named = ", ".join(expressions or classified or first[:1])
    return named if PERMISSIVE.search(named) and not COPYLEFT.search(named) else None


def _read_source(job: tuple[Source, int, int]) -> tuple[list[str], list[Function], int]:
    """A source's documents and short functions, and how many were left out for their overlap."""
    source, most, seed = job
    files = [path for path in source.files if not any(part in path.as_posix() for part in SKIPPED)]
    random.Random(f"{seed}/{source.name}").shuffle(files)
    texts: list[str] = []
    functions: list[Function] = []
    room, removed = most, 0
    for path in files:
        if room <= 0:
            break
        text = _source_text(path)
        if text is None:
            continue
        for document in (text, *whole_functions(text, SMALLEST, 4000)):
            if overlaps(document):
                removed += 1
            else:
                texts.append(document)
                room -= len(document)
        short = list(short_functions(text))
        clean = [one for one in short if not overlaps(one.text)]
        functions += clean
        removed += len(short) - len(clean)
    return texts, functions, removed


def _source_text(path: Path) -> str | None:
    """A file that people wrote to be read, else None."""
    try:
        if not SMALLEST <= path.stat().st_size <= LARGEST:
            return None
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    letters = sum(char.isalpha() for char in text) / len(text)
    longest = max(map(len, text.splitlines()), default=0)
    return text if letters > 0.4 and longest < 400 and "\0" not in text else None


def chat(question: str, answer: str) -> str:
    """A question with its answer as the pair's chat template has them; the document's end ends it."""
    return f"Question: {question.strip()}\nAnswer: {answer.strip()}\n"


def _gsm8k(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n"):
        row = json.loads(line)
        yield chat(row["question"], row["answer"])


# -------------------------------------------------------------------------------------------------------- overlap

Grams = frozenset[tuple[str, ...]]
_GRAMS: list[tuple[Grams, Grams]] = []  # of this process, set once when it starts: the grams, and their beginnings


def _remember(grams: Grams) -> None:
    _GRAMS[:] = [(grams, frozenset(gram[:LEAST_WORDS] for gram in grams))]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def text_grams(text: str) -> Iterator[tuple[str, ...]]:
    """The 13-grams of an evaluation text; of a short one all of it."""
    found = words(text)
    if LEAST_WORDS <= len(found) < GRAM:
        yield tuple(found)
    for start in range(len(found) - GRAM + 1):
        yield tuple(found[start : start + GRAM])


def overlaps(text: str) -> bool:
    """Whether a document holds one of the grams."""
    grams, beginnings = _GRAMS[0]
    found = words(text)
    for start in range(len(found) - LEAST_WORDS + 1):
        if tuple(found[start : start + LEAST_WORDS]) in beginnings and any(
            tuple(found[start : start + size]) in grams for size in range(LEAST_WORDS, GRAM + 1)
        ):
            return True
    return False


def evaluation_texts(path: Path) -> Iterator[str]:
    """The prompts and solutions of a file of JSON lines."""
    for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n"):
        row: Mapping[str, object] = json.loads(line)
        for name in FIELDS:
            value = row.get(name)
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    yield text


def default_workers() -> int:
    return max(1, min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))
