"""`ouroboros serve` under load: more clients than it has room for, each asking again and again, whole and in streams;
some go away in the middle.

    python benchmarks/server_load.py --clients 64 --seconds 120 --out benchmarks/results/server_load.json
    python benchmarks/server_load.py --clients 8 --url http://127.0.0.1:8000     # a server that runs already

What must hold, or the exit status is 1: each answer is 200, or 429 with ``Retry-After`` where the queue is full; a
stream ends with ``[DONE]``; a request whose client has gone has ended within one forward and half a second; memory does
not grow from the second quarter of the time to the last by more than a tenth; at the end nothing runs or waits.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

GONE = 0.5  # seconds, beside one forward
GROWTH = 0.1  # of the memory
SAMPLE = 1.0  # seconds between two looks at the memory
PROMPTS = ("def add(a, b):\n", "import os\n\n", "class Stack:\n    def push(self, item):\n", "# Sort a list\n")


class Load:
    """Clients of one server, and what came of their requests.

    Attributes:
        statuses: how often each came. faults: what must not be. left: clients that went away.
    """

    def __init__(self, url: str, until: float, leaving: float = 0.2) -> None:
        self.statuses: collections.Counter[int] = collections.Counter()
        self.faults: list[str] = []
        self.left = 0
        self._address = urlsplit(url).netloc
        self._until, self._leaving = until, leaving
        self._lock = threading.Lock()

    def client(self, number: int) -> None:
        """One client, until the time is over."""
        source = random.Random(number)
        while time.monotonic() < self._until:
            try:
                self._ask(source)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._note(fault=f"client {number}: {type(error).__name__}: {error}")

    def _ask(self, source: random.Random) -> None:
        stream, leaves = source.random() < 0.6, source.random() < self._leaving
        tenant = source.choice([False, *(f"tenant {i}" for i in range(8))])
        body = {
            "prompt": source.choice(PROMPTS) + f"# {source.randrange(10)}\n",
            "max_tokens": 400 if leaves else source.choice((8, 32, 64)),
            "temperature": 0.0 if tenant else 0.8,  # what is always new would fill memories up to their bounds
            "stream": stream,
            "ignore_eos": True,
            "memory": tenant,
        }
        with contextlib.closing(http.client.HTTPConnection(self._address, timeout=120)) as connection:
            connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
            if leaves and not stream:
                time.sleep(source.uniform(0.05, 0.5))
                self._note(left=1)
                return
            answer = connection.getresponse()
            if answer.status == 200 and leaves:
                answer.readline()
                self._note(200, left=1)
                return
            data = answer.read()
            self._check(answer.status, answer.getheader("retry-after"), data, stream)
        if answer.status == 429:
            time.sleep(min(float(answer.getheader("retry-after") or 1), 2.0) * source.uniform(0.5, 1.0))

    def _check(self, status: int, after: str | None, data: bytes, stream: bool) -> None:
        fault = ""
        if status == 429:
            fault = "" if after and after.isdigit() else f"429 without Retry-After but {after!r}"
        elif status != 200:
            fault = f"status {status}: {data[:200]!r}"
        elif stream:
            fault = (
                ""
                if data.endswith(b"data: [DONE]\n\n") and b'data: {"error"' not in data
                else f"stream: {data[-200:]!r}"
            )
        elif not json.loads(data)["choices"][0]["finish_reason"]:
            fault = f"no end: {data[-200:]!r}"
        self._note(status, fault)

    def _note(self, status: int = 0, fault: str = "", left: int = 0) -> None:
        with self._lock:
            if status:
                self.statuses[status] += 1
            if fault:
                self.faults.append(fault)
            self.left += left


def metrics(url: str) -> dict[str, float]:
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}


def busy(url: str) -> int:
    """Requests that run or wait."""
    found = metrics(url)
    return int(found["ouroboros:num_requests_running"] + found["ouroboros:num_requests_waiting"])


def leave(url: str, stream: bool) -> tuple[float, float]:
    """A client that goes away, on a server that does nothing else. Returns the seconds until its request has ended,
    and those of a step of it before."""
    body = {"prompt": PROMPTS[0], "max_tokens": 1500, "ignore_eos": True, "temperature": 0, "stream": stream}
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    if stream:
        answer = connection.getresponse()
        answer.readline()
        began, steps = time.monotonic(), 8
        for _ in range(steps * 2):  # an event and an empty line
            answer.readline()
        forward = (time.monotonic() - began) / steps
        answer.close()
    else:
        while not busy(url):
            time.sleep(0.005)
        forward = 0.0
    connection.close()
    began = time.monotonic()
    while busy(url):
        if time.monotonic() - began > 60:
            break
        time.sleep(0.005)
    return time.monotonic() - began, forward


def resident(process: int) -> int:
    """Bytes of RAM."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def served() -> Iterator[tuple[str, int]]:
    """A server of the embedded pair: its URL and process."""
    command = [sys.executable, "-m", "ouroboros", "serve", "--port", "0", "--log", "off"]
    command += ["--max-queue", "24", "--kv-memory", "0.25"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        if found is None:
            raise SystemExit("error: the server did not start")
        try:
            yield found[0], process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            if process.wait(60) != 0:
                raise SystemExit(f"error: the server ended with {process.returncode}")


def press(url: str, process: int | None, clients: int, seconds: float) -> dict[str, Any]:
    """All of it; ``faults`` says what must not be."""
    began = time.monotonic()
    load = Load(url, began + seconds)
    threads = [threading.Thread(target=load.client, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    memory: list[int] = []
    while time.monotonic() < began + seconds:
        if process is not None:
            memory.append(resident(process))
        time.sleep(min(SAMPLE, seconds / 8))
    for thread in threads:
        thread.join()
    spent, faults = time.monotonic() - began, load.faults
    drained = time.monotonic()
    while busy(url) and time.monotonic() - drained < 60:
        time.sleep(0.02)
    if busy(url):
        faults.append(f"{busy(url)} requests are left with no client")
    gone = [leave(url, stream) for stream in (True, False) * 5]
    forward = max(forward for _, forward in gone)
    slowest = max(seconds for seconds, _ in gone)
    if slowest > GONE + forward:
        faults.append(f"a request ended {slowest:.2f} s after its client had gone; a step took {forward:.3f} s")
    second, last = memory[len(memory) // 4 : len(memory) // 2], memory[-max(1, len(memory) // 4) :]
    growth = statistics.mean(last) / statistics.mean(second) - 1 if second else 0.0
    if growth > GROWTH:
        faults.append(f"memory grew by {growth:.0%} from the second quarter to the last")
    return {
        "clients": clients,
        "seconds": round(spent, 1),
        "answers": {str(status): count for status, count in sorted(load.statuses.items())},
        "left": load.left,
        "rss_mib": [round(one / 2**20) for one in memory[:: max(1, len(memory) // 24)]],
        "rss_growth": round(growth, 4),
        "gone_seconds": [round(one, 3) for one, _ in gone],
        "step_seconds": round(forward, 4),
        "metrics": {
            name.removeprefix("ouroboros:"): value
            for name, value in metrics(url).items()
            if re.search(r"request_(success|refused)_total|generation_tokens_total|kv_cache|kv_caches", name)
        },
        "faults": faults[:20],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--url", help="of a server that runs; by default one is started")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    asked = parser.parse_args()
    if asked.url is None:
        with served() as (url, process):
            found = press(url, process, asked.clients, asked.seconds)
    else:
        found = press(asked.url, None, asked.clients, asked.seconds)
    text = json.dumps(found, indent=1)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text + "\n", encoding="utf-8")
    raise SystemExit(1 if found["faults"] else 0)


if __name__ == "__main__":
    main()
