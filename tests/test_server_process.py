"""``ouroboros serve`` in a process of its own: what it says when it starts, and how SIGTERM ends it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.children import started

PROMPT = "def add(a, b):\n"


def address(process: Any) -> str:
    found = re.search(r"http://\S+", process.stdout.readline().decode())
    assert found is not None, process.stderr.read()
    return found[0]


def stream_until(url: str, tokens: int, begun: threading.Event, rows: list[dict[str, Any]]) -> None:
    body = {"prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True, "stream": True, "temperature": 0}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if line == "data: [DONE]":
                rows.append({})
            elif line:
                rows.append(json.loads(line.removeprefix("data: ")))
                begun.set()


@pytest.mark.parametrize(("grace", "tokens"), [("30", 300), ("0.3", 1900)], ids=["to its end", "what it has"])
def test_sigterm_lets_requests_end(tmp_path: Path, grace: str, tokens: int) -> None:
    args = ["--port", "0", "--grace", grace, "--memory-dir", str(tmp_path), "--threads", "1", "--dtype", "float32"]
    with started("serve", *args, "--log", "json") as process:
        url = address(process)
        begun, rows = threading.Event(), list[dict[str, Any]]()
        reader = threading.Thread(target=stream_until, args=(url, tokens, begun, rows))
        reader.start()
        assert begun.wait(30)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(httpx.TransportError):  # it listens no more
            while reader.is_alive():
                refused = httpx.post(f"{url}/v1/completions", json={"prompt": PROMPT})
                assert refused.status_code in (200, 503)
        reader.join(60)
        assert process.wait(30) == 0
        assert time.monotonic() - began < 35
        assert process.stderr is not None
        lines = process.stderr.read().decode().splitlines()
    assert rows[-1] == {}
    assert rows[-2]["choices"][0]["finish_reason"] == "length"
    assert sum(len(row["choices"][0]["text"]) for row in rows[:-1]) > 20
    assert lines[0] == "loading the embedded pair"
    assert any(re.fullmatch(r"loaded in \d+\.\d s", line) for line in lines)
    told = [json.loads(line) for line in lines if line.startswith("{")]
    assert ("POST", 200) in {(one["method"], one["status"]) for one in told}
    assert len(list(tmp_path.rglob("*.pool"))) == 1
    assert list(tmp_path.rglob("*.lock")) == []


def test_a_second_writer_of_memories_is_told(tmp_path: Path) -> None:
    args = ["--port", "0", "--memory-dir", str(tmp_path), "--threads", "1"]
    with started("serve", *args) as first:
        address(first)
        with started("serve", *args) as second:
            out, err = second.communicate(timeout=60)
        assert (second.returncode, out) == (2, b"")
        last = err.decode().splitlines()[-1]
        assert last.startswith("ouroboros: error: ")
        assert f"in use by process {first.pid}" in last
        first.send_signal(signal.SIGINT)
        assert first.wait(30) == 130
