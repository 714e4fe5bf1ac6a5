"""Smoke test of an installed wheel: run it by that environment's Python, isolated (-I), from an empty directory."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import ouroboros
from ouroboros.bench.demo import demo_prompts

METHODS = [
    "autoregressive",
    "speculative",
    "prompt_lookup",
    "lookahead",
    "suffix_decoding",
    "token_recycling",
    "ouroboros",
]
PROMPT = "def fibonacci(n):"


def command_line(*arguments: str) -> str:
    """Standard output of the installed ``ouroboros`` command; a failure shows its standard error."""
    command = [str(Path(sys.executable).with_name("ouroboros")), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, f"{command} ended with {done.returncode}"
    return done.stdout


def main() -> None:
    package = Path(ouroboros.__file__).parent
    assert package.is_relative_to(sys.prefix), f"not the installed package: {package}"
    assert ouroboros.__version__ == version("ouroboros-decoding")

    assert ouroboros.__version__ in command_line("--version")
    answer = json.loads(command_line("generate", PROMPT, "--max-new-tokens", "16", "--json"))
    assert {"text", "token_ids", "prompt_token_ids", "finish_reason", "stats"} <= answer.keys(), answer.keys()
    assert 1 <= len(answer["token_ids"]) <= 16, answer
    print(f"command line: {len(answer['token_ids'])} tokens, {answer['text']!r}")

    prompts = [PROMPT, *(prompt.text for prompt in demo_prompts())]
    for sampling in ({"temperature": 0.0}, {"temperature": 0.8, "seed": 1}):
        expected: list[list[int]] = []
        for method in METHODS:
            decoder = ouroboros.load(method=method, dtype="float32")
            results = [decoder.generate(prompt, max_new_tokens=64, **sampling) for prompt in prompts]
            token_ids = [result.token_ids for result in results]
            expected = expected or token_ids
            assert token_ids == expected, f"{method} with {sampling}: {token_ids} instead of {expected}"
            tokens = sum(map(len, token_ids))
            forwards = sum(result.stats.target_forwards for result in results)
            print(f"{method} with {sampling}: {tokens} tokens, {tokens / forwards:.2f} a target forward")
    print("all methods write the same tokens")


if __name__ == "__main__":
    main()
