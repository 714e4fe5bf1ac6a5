"""Whether an installed platform wheel computes with the kernels that it carries: run it by that environment's Python,
isolated (-I), from an empty directory. No compiler can be found by what it starts."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def ask(*arguments: str) -> Any:
    """The JSON object that the installed command prints, and nothing on standard error: no word of compiling."""
    here = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as nowhere:
        kept = {"PATH": nowhere, "HF_HUB_OFFLINE": "1", "HOME": nowhere, "LANG": "C.UTF-8"}
        command = [sys.executable, str(here / "ouroboros"), *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=kept)
    assert (done.returncode, done.stderr) == (0, ""), f"{arguments[0]}: {done.returncode}, {done.stderr}"
    return json.loads(done.stdout)


def main() -> None:
    began = time.perf_counter()
    found = ask("doctor")
    engine = found["engine"]
    print(f"doctor, {time.perf_counter() - began:.1f} s: {engine}")
    for name, one in found["formats"].items():
        print(name, one)
    assert engine["compiler"] is None, engine
    assert engine["name"] == "kernels", engine
    assert engine["why"].startswith("built ahead"), engine
    assert {one["engine"] for one in found["formats"].values()} == {"kernels"}, found["formats"]
    began = time.perf_counter()
    answer = ask("generate", "def fibonacci(n):", "--max-new-tokens", "32")
    assert len(answer["token_ids"]) == 32 or answer["finish_reason"] == "stop", answer
    print(f"generate, {time.perf_counter() - began:.1f} s: {answer['text']!r}")


if __name__ == "__main__":
    main()
