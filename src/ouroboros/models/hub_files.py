"""A GGUF file of a hub repository: which one ``owner/name:WHAT`` means, and where it lies once it is fetched."""

from __future__ import annotations

import glob
import re
from pathlib import Path, PurePosixPath

from ouroboros.errors import LoadError
from ouroboros.models.gguf_file import SPLIT

__all__ = ["choose", "fetch_gguf"]

SHOWN = 12  # names in a message
OTHERS = re.compile(r"(^|[-_.])(mmproj|imatrix)([-_.]|$)", re.IGNORECASE)  # what lies beside models, and is none


def fetch_gguf(repository: str, what: str, revision: str | None, token: str | None) -> Path:
    """Fetches the file, or all parts of a split one, into the hub's cache; without a network what is there is found.

    Args:
        what: a file's name, or how the names of one end: ``Q4_K_M``.

    Raises:
        LoadError: the repository has no such file, or more than one. Exception: whatever the hub's client raises.
    """
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        names = list_repo_files(repository, revision=revision, token=token)
    except Exception:  # of dozens of unrelated types; most often there is no network
        there = snapshot_download(
            repository, revision=revision, token=token, allow_patterns=["*.gguf"], local_files_only=True
        )
        names = [str(path.relative_to(there).as_posix()) for path in sorted(Path(there).rglob("*.gguf"))]
    chosen = choose(names, what)
    patterns = [glob.escape(name) for name in chosen]
    folder = snapshot_download(repository, revision=revision, token=token, allow_patterns=patterns)
    return Path(folder) / chosen[0]


def choose(names: list[str], what: str) -> list[str]:
    """The file that ``what`` means among the files of a repository; of a split one all parts, in order.

    Raises:
        LoadError: none, or several.
    """
    models: dict[str, list[str]] = {}  # by the names without their parts' numbers
    for name in sorted(names):
        if name.lower().endswith(".gguf") and not OTHERS.search(PurePosixPath(name).name):
            models.setdefault(_whole(name), []).append(name)
    if what.lower().endswith(".gguf"):
        found = [model for model, parts in models.items() if what in parts] or [
            model for model, parts in models.items() if what in [PurePosixPath(part).name for part in parts]
        ]
    else:
        ending = re.compile(rf"(^|[-_.]){re.escape(what)}$", re.IGNORECASE)
        found = [model for model in models if ending.search(PurePosixPath(model).stem)]
    if len(found) == 1:
        return models[found[0]]
    shown = sorted(found or models)
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    listed = ", ".join(shown[:SHOWN]) + more if shown else "none"
    raise LoadError(f"{'several' if found else 'no'} GGUF files of it match {what!r:.80} (there are: {listed})")


def _whole(name: str) -> str:
    match = SPLIT.fullmatch(name)
    return name if match is None else match["stem"] + ".gguf"
