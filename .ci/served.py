"""Run the examples of clients against `ouroboros serve` with the embedded pair, each in a process of its own.

An example whose package is not installed is named and left out.

    python .ci/served.py examples/server
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

SECONDS = 180  # until the server has loaded
KEY = "example"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(10 * SECONDS):
        if server.poll() is not None:
            raise SystemExit(f"error: the server ended with {server.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if json.load(answer) == {"status": "ok"}:
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"error: the server has not loaded within {SECONDS} s")


def missing(example: Path) -> str | None:
    """What an example needs and this environment lacks."""
    if example.suffix == ".sh":
        return None if shutil.which("curl") else "curl"
    packages = re.findall(r"^(?:from|import) (\w+)", example.read_text(encoding="utf-8"), re.MULTILINE)
    return next((name for name in packages if importlib.util.find_spec(name) is None), None)


def main() -> None:
    examples = sorted(path for path in Path(sys.argv[1]).iterdir() if path.suffix in (".py", ".sh"))
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [str(Path(sys.executable).with_name("ouroboros")), "serve", "--port", str(port), "--api-key", KEY]
    environment = {**os.environ, "OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": KEY}
    server = subprocess.Popen(command)
    try:
        wait(url, server)
        for example in examples:
            lacking = missing(example)
            if lacking is not None:
                print(f"{example}: left out, {lacking} is not installed")
                continue
            print(f"--- {example}", flush=True)
            program = ["sh"] if example.suffix == ".sh" else [sys.executable]
            subprocess.run([*program, str(example)], env=environment, check=True, timeout=120)
    finally:
        server.terminate()
        status = server.wait(60)
    if status not in (0, 143):
        raise SystemExit(f"error: the server ended with {status}")


if __name__ == "__main__":
    main()
