"""The server under more clients than it has room for: a few seconds of benchmarks/server_load.py."""

from __future__ import annotations

import asyncio
import time

import pytest

import ouroboros
from benchmarks.server_load import GONE, press
from ouroboros.server.service import Run, Service
from tests.servers import serving


def test_a_full_queue_and_clients_that_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[float] = []  # seconds from a client's leaving, as the server notices it, to its request's end
    watching: set[asyncio.Task[None]] = set()
    end = Service.end

    async def watch(run: Run, left: float) -> None:
        while run.live:
            await asyncio.sleep(0.002)
        ended.append(time.monotonic() - left)

    def noted(self: Service, run: Run) -> None:
        if run.live:
            watching.add(asyncio.get_running_loop().create_task(watch(run, time.monotonic())))
        end(self, run)

    monkeypatch.setattr(Service, "end", noted)
    decoder = ouroboros.load(dtype="float32")
    with serving(decoder, max_requests=4, max_queue=4, kv_memory=64 << 20) as server:
        found = press(server.address, None, clients=16, seconds=4.0)
    assert found["faults"] == []
    assert found["answers"]["200"] > 4
    assert found["answers"]["429"] > 4
    assert found["left"] > 4
    assert found["metrics"]['request_refused_total{status="429"}'] >= found["answers"]["429"]
    assert len(ended) == found["metrics"]['request_success_total{finished_reason="cancelled"}'] > 4
    assert max(ended) < GONE + found["step_seconds"]
