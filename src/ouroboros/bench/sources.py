"""Where a task's rows come from: files as their authors publish them, or a dataset on the Hugging Face hub."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ouroboros.errors import InputError
from ouroboros.files import parse_json

__all__ = ["Row", "read_rows"]

Row = Mapping[str, Any]
_TABLES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
_KINDS = (
    "JSON lines or a JSON array (.jsonl, .json, also .gz), .parquet, WMT's -src.de.sgm or .de, or a folder of .story"
)


def read_rows(source: str, part: str) -> list[Row]:
    """The rows of a file, of a folder of stories, or of a dataset on the hub (``owner/name`` or ``owner/name/file``).

    Args:
        part: how the names of the dataset's files begin that hold the part that is measured, as ``main/test``.

    Raises:
        InputError: no such file or dataset, or one that is not as it should be.
    """
    path = Path(source)
    if path.exists():
        return _read(path)
    if source.endswith((*_TABLES, ".sgm", ".de")) and source.count("/") < 2:
        raise InputError(f"no such file: {source!r}")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(/.+)?", source):
        raise InputError(f"no such file: {source!r} (a source is a file or a dataset on the hub like 'owner/name')")
    return [row for file in _download(source, part) for row in _read(file)]


def _read(path: Path) -> list[Row]:
    try:
        if path.is_dir():
            return [_story(file) for file in sorted(path.glob("*.story"))] or _refuse(path, "holds no .story file")
        if path.name.endswith(".parquet"):
            return _parquet(path)
        if path.name.endswith((".sgm", ".de")):
            return _parallel(path)
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:  # a broken .gz raises either of the first two
        return _refuse(path, f"cannot be read: {getattr(error, 'strerror', None) or error}")
    try:
        values = (
            parse_json(text)
            if text.lstrip().startswith("[")
            else [parse_json(s) for s in text.split("\n") if s.strip()]
        )
    except ValueError:
        values = []
    if not values or not all(isinstance(value, dict) for value in values):
        return _refuse(path, f"must be {_KINDS}, with one JSON object an item")
    return values


def _refuse(path: Path, what: str) -> list[Row]:
    raise InputError(f"the source {str(path)!r} {what}")


def _story(path: Path) -> Row:
    """An article of CNN/DailyMail (Hermann et al. 2015): paragraphs, then its highlights, each behind a mark."""
    article, *highlights = path.read_text(encoding="utf-8").split("@highlight")
    return {"id": path.stem, "article": article.strip(), "highlights": "\n".join(s.strip() for s in highlights)}


def _parallel(path: Path) -> list[Row]:
    """A WMT test set: the German side's file and, where it lies beside, the English one."""
    beside = path.with_name(re.sub(r"\.de$", ".en", path.name.replace("-src.de.", "-ref.en.")))
    german = _segments(path)
    english = _segments(beside) if beside != path and beside.exists() else [None] * len(german)
    if len(german) != len(english):
        return _refuse(path, f"has {len(german)} segments, {beside.name!r} beside it {len(english)}")
    return [{"translation": {"de": de, "en": en}} for de, en in zip(german, english, strict=True)]


def _segments(path: Path) -> list[str | None]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sgm":
        return [found.strip() for found in re.findall(r"<seg[^>]*>(.*?)</seg>", text, re.DOTALL)]
    return [line for line in text.split("\n") if line.strip()]


def _parquet(path: Path) -> list[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        return _refuse(path, "is a parquet file and needs pyarrow: pip install 'ouroboros-decoding[bench]'")
    try:
        rows: list[Row] = parquet.read_table(path).to_pylist()
    except ArrowException as error:
        return _refuse(path, f"cannot be read: {str(error).splitlines()[0]}")
    return rows


def _download(source: str, part: str) -> list[Path]:
    """The dataset's files that hold the part, in the hub's own cache."""
    from huggingface_hub import hf_hub_download, list_repo_files

    owner, name, *rest = source.split("/", 2)
    repository = f"{owner}/{name}"
    try:
        files = rest or _choose(list_repo_files(repository, repo_type="dataset"), part, repository)
        return [Path(hf_hub_download(repository, file, repo_type="dataset")) for file in files]
    except InputError:
        raise
    except Exception as error:  # the hub's client raises dozens of unrelated types
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{source!r} is no file, and the hub did not give it as a dataset: {line}") from error


def _choose(files: Sequence[str], part: str, repository: str) -> list[str]:
    tables = sorted(name for name in files if name.endswith(_TABLES))
    split = part.rpartition("/")[2]
    found = [name for name in tables if part and name.startswith(part)] or [n for n in tables if split and split in n]
    found = found or (tables if len(tables) == 1 else [])
    if not found:
        listed = ", ".join(tables[:12]) or "none of JSON or parquet"
        raise InputError(f"which file of {repository!r}? give it as {repository + '/FILE'!r}: it has {listed}")
    return found
