"""llama.cpp's own programs as peers, where they are on the PATH: with a draft model, with lookahead, with lookup.

Each request is a run of the program, which measures its own times (loading is in none of them). The GGUF files have a
vocabulary whose texts are the ids (``llama_worker``), so a program that takes and gives text takes and gives ids.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from ouroboros.bench.peers.base import PeerResult
from ouroboros.bench.peers.llama import Llama
from ouroboros.errors import InputError, LoadError

__all__ = ["PROGRAMS", "ProgramPeer"]

PROGRAMS: Mapping[str, tuple[str, ...]] = {  # with what each needs besides the target
    "llama.cpp-speculative": ("llama-speculative-simple", "--spec-type", "draft-simple"),
    "llama.cpp-lookahead": ("llama-lookahead",),
    "llama.cpp-lookup": ("llama-lookup",),
}
TRIES = 3  # a program may end before its log is written out
SPARE = 256  # positions for a step beyond the last token: lookahead needs 120 and their window


class ProgramPeer:
    """``draft_tokens``: how many tokens a step proposes, where the program has such a setting; None: its default."""

    def __init__(self, name: str, llama: Llama, draft_tokens: int | None = None) -> None:
        """
        Raises:
            LoadError: the program is not on the PATH, or as ``Llama.file``.
        """
        self.name = name
        program, *more = PROGRAMS[name]
        path = shutil.which(program)
        if path is None:
            raise LoadError(f"{program} is not on the PATH; it comes with llama.cpp")
        self._command = [path, "-m", llama.file("target"), *more, "-t", str(llama.threads)]
        if llama.dtype == "float32":
            self._command += ["-ctk", "f32", "-ctv", "f32"]
        if name == "llama.cpp-speculative":
            self._command += ["-md", llama.file("draft")]
        if draft_tokens is not None and name != "llama.cpp-lookahead":
            self._command += ["--spec-draft-n-max", str(draft_tokens)]
        self.settings = {
            "program": program,
            "dtype": llama.dtype,
            "threads": llama.threads,
            "draft_tokens": draft_tokens,
        }
        self._llama: Llama | None = llama
        llama.join()

    def generate(
        self, prompt_ids: Sequence[int], new_tokens: int, *, temperature: float, seed: int, ignore_eos: bool
    ) -> PeerResult:
        """``ignore_eos`` must be set: the files have no end of text. The program writes a few tokens more than asked
        for; they are cut off, and so is their share of its time."""
        assert self._llama is not None, "the peer is closed"
        if not ignore_eos:
            raise InputError(f"{self.name} knows no end of text: ignore_eos must be set")
        prompt = self._llama.folder / "prompt"
        prompt.write_text("".join(f"<{token}>" for token in prompt_ids), encoding="ascii")
        context = str(len(prompt_ids) + new_tokens + SPARE)
        sampling = ["--temp", str(temperature), "--top-k", "0", "--top-p", "1", "--min-p", "0", "-s", str(seed % 2**32)]
        lengths = ["-n", str(new_tokens - 1), "-c", context, "-b", context]  # it stops behind more than -n tokens
        command = [*self._command, "-f", str(prompt), *lengths, *sampling]
        for _ in range(TRIES):
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", cwd=prompt.parent
            )
            written = [int(token) for token in re.findall(r"<(\d+)>", done.stdout)][len(prompt_ids) :]
            figures = re.findall(r"(encoded|decoded) +(\d+) tokens in +([\d.]+) seconds", done.stdout + done.stderr)
            times = {what: (int(count), float(seconds)) for what, count, seconds in figures}
            if done.returncode:
                break
            if len(times) == 2 and len(written) >= new_tokens:
                decoded, seconds = times["decoded"]
                share = new_tokens / decoded
                return PeerResult(tuple(written[:new_tokens]), times["encoded"][1], share * seconds, new_tokens)
        lines = [line.strip() for line in done.stderr.split("\n") if line.strip()] or ["without a word"]
        told = next((line for line in lines if re.search("fail|error|assert", line, re.IGNORECASE)), lines[-1])
        raise LoadError(f"{self._command[0]} ended with status {done.returncode}: {told[:200]}")

    def close(self) -> None:
        if self._llama is not None:
            self._llama.leave()
            self._llama = None
