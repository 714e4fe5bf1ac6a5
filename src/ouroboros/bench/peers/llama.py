"""llama.cpp as a peer, plain and with prompt lookup: llama-cpp-python in a process, perhaps in a Python, of its own.

Checkpoints are written as GGUF into a temporary directory, and one process serves both peers from it (see
``llama_worker``). A prompt without its last token is read first; decoding then brings all new tokens.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ouroboros.bench.peers.base import PeerResult
from ouroboros.errors import InputError, LoadError
from ouroboros.models.gguf import read_gguf
from ouroboros.models.loading import read_directory

__all__ = ["Llama", "LlamaPeer"]

WORKER = Path(__file__).with_name("llama_worker.py")
LOOKUP = "llama.cpp-prompt-lookup"
LOOKUP_TOKENS = 10  # LlamaPromptLookupDecoding's own default


class Llama:
    """What llama.cpp's peers share: GGUF files and the worker that serves them; both go with the last peer.

    Attributes:
        end: the target's end-of-text tokens. context: the most positions of the target.
    """

    def __init__(self, target: Path, draft: Path | None, dtype: str, threads: int, python: str | None) -> None:
        """
        Args:
            python: the one with llama-cpp-python and gguf; None: this one.

        Raises:
            LoadError: the target is no model that the library reads.
        """
        self.python, self.threads, self.dtype = python or sys.executable, threads, dtype
        checkpoint = read_gguf(target) if target.is_file() else read_directory(target)
        self.end, self.context = sorted(checkpoint.eos_token_ids), checkpoint.config.max_position_embeddings
        self._paths = {"target": target, "draft": draft}
        self._files: dict[str, str] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._worker: _Worker | None = None
        self._users = 0

    def file(self, role: str) -> str:
        """The GGUF file of the ``target`` or the ``draft``: the very file, or one written when it is first asked for.

        Raises:
            LoadError: gguf is missing, the model is not one that is written for llama.cpp, or there is no draft.
        """
        path = self._paths[role]
        if path is None:
            raise LoadError("needs a draft model, and there is none")
        if path.is_file():
            return str(path)
        if role not in self._files:
            file = str(self.folder / f"{role}.gguf")
            _Worker(self.python, self.folder, "convert", str(path), file, self.dtype).close()
            self._files[role] = file
        return self._files[role]

    @property
    def folder(self) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="ouroboros-gguf-", ignore_cleanup_errors=True)
        return Path(self._folder.name)

    def worker(self) -> _Worker:
        """
        Raises:
            LoadError: as ``file``, or llama-cpp-python is missing.
        """
        if self._worker is None:
            settings = self.file("target"), str(self.context), str(self.threads), self.dtype
            self._worker = _Worker(self.python, self.folder, "serve", *settings)
        return self._worker

    def join(self) -> None:
        self._users += 1

    def leave(self) -> None:
        """To be called by whoever joined, and if nobody did."""
        self._users -= 1
        if self._users <= 0:
            if self._worker is not None:
                self._worker.close()
            if self._folder is not None:
                self._folder.cleanup()
            self._worker, self._folder, self._files = None, None, {}


class LlamaPeer:
    """``draft_tokens``: how many tokens prompt lookup proposes; None for llama-cpp-python's own default."""

    def __init__(self, name: str, llama: Llama, draft_tokens: int | None = None) -> None:
        """
        Raises:
            LoadError: as ``Llama.worker``.
        """
        self.name = name
        self._lookup = (draft_tokens or LOOKUP_TOKENS) if name == LOOKUP else None
        own = {} if self._lookup is None else {"num_pred_tokens": self._lookup}
        self.settings = {**llama.worker().versions, "dtype": llama.dtype, "threads": llama.threads, **own}
        self._llama: Llama | None = llama
        llama.join()

    def generate(
        self, prompt_ids: Sequence[int], new_tokens: int, *, temperature: float, seed: int, ignore_eos: bool
    ) -> PeerResult:
        assert self._llama is not None, "the peer is closed"
        answer = self._llama.worker().ask(
            prompt=list(prompt_ids),
            new_tokens=new_tokens,
            temperature=temperature,
            seed=seed % 2**32,
            end=[] if ignore_eos else self._llama.end,
            lookup=self._lookup,
        )
        tokens = tuple(answer["token_ids"])
        return PeerResult(tokens, answer["prefill_seconds"], answer["decode_seconds"], len(tokens))

    def close(self) -> None:
        if self._llama is not None:
            self._llama.leave()
            self._llama = None


class _Worker:
    """The script as a process that is ready; ``versions``: what it says of itself."""

    def __init__(self, python: str, folder: Path, *arguments: str) -> None:
        """
        Raises:
            LoadError: it does not start, or says why it cannot.
        """
        self._log = folder / "log"
        command = [python, str(WORKER), *arguments]
        pipe = subprocess.PIPE
        try:
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, stderr=log, text=True, encoding="utf-8"
                )
        except OSError as error:
            raise LoadError(f"cannot start {python!r}: {error.strerror}") from None
        try:
            answer = self._answer()
            if "error" in answer:
                raise LoadError(_hint(str(answer["error"]), python))
        except BaseException:
            self.close()
            raise
        self.versions: dict[str, object] = dict(answer["ready"])

    def ask(self, **request: Any) -> dict[str, Any]:
        """
        Raises:
            InputError: a request that the engine refuses. LoadError: the process has ended.
        """
        with contextlib.suppress(BrokenPipeError):  # what it said at its end is read below
            print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._answer()
        if "error" in answer:
            raise InputError(f"llama.cpp: {answer['error']}")
        return answer

    def close(self) -> None:
        with self._process as process:  # closes both pipes and waits
            try:
                process.communicate(timeout=10)
            except (subprocess.TimeoutExpired, BrokenPipeError, ValueError):  # ValueError: closed before
                process.kill()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            words = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((word.strip() for word in reversed(words) if word.strip()), "without a word")
            raise LoadError(f"the llama.cpp process ended: {last[:200]}") from None
        return answer


def _hint(error: str, python: str) -> str:
    if "ModuleNotFoundError" in error:
        what = error.rpartition(": ")[2]
        return f"{what} in {python}: pip install llama-cpp-python gguf, there or in a Python of its own"
    return error
