"""Send `ouroboros serve` (the embedded pair) what its own OpenAPI schema allows and forbids, 2,000 cases or more, with
every check of schemathesis: without an API key, then with one. Ends with 1 where a check fails, or the server's log
tells of a defect.

    python .ci/fuzz_api.py [--examples 250]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from served import free_port, wait

KEY = "example"


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def fuzz(examples: int, key: str | None) -> bool:
    """Whether all is well."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    serve = [tool("ouroboros"), "serve", "--port", str(port), "--log", "off", "--max-tokens", "16"]
    run = [tool("schemathesis"), "--config-file", str(Path(__file__).with_name("schemathesis.toml"))]
    run += ["run", f"{url}/openapi.json", "--checks", "all", "--max-examples", str(examples)]
    run += ["--generation-deterministic", "--continue-on-failure", "--request-timeout", "30"]
    if key is not None:
        serve += ["--api-key", key]
        run += ["--header", f"Authorization: Bearer {key}"]
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryDirectory() as empty:
        server = subprocess.Popen(serve, stderr=log)
        try:
            wait(url, server)
            status = subprocess.run(run, cwd=empty, timeout=1800).returncode
        finally:
            server.terminate()
            ended = server.wait(60)
        log.seek(0)
        told = log.read()
    defects = told.count("Traceback")
    if defects:
        print(told[-4000:])
    print(f"schemathesis ended with {status}, the server with {ended}; defects in its log: {defects}", flush=True)
    return status == 0 and ended == 0 and not defects


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--examples", type=int, default=250, help="cases that are made for each operation, about")
    examples = parser.parse_args().examples
    raise SystemExit(0 if all([fuzz(examples, None), fuzz(examples, KEY)]) else 1)


if __name__ == "__main__":
    main()
