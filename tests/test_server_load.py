"""The server under more clients than it has room for: a few seconds of benchmarks/server_load.py."""

from __future__ import annotations

import ouroboros
from benchmarks.server_load import press
from tests.servers import serving


def test_a_full_queue_and_clients_that_leave() -> None:
    decoder = ouroboros.load(dtype="float32")
    with serving(decoder, max_requests=4, max_queue=4, kv_memory=64 << 20) as server:
        found = press(server.address, None, clients=16, seconds=4.0)
        assert found["faults"] == []
        assert found["answers"]["200"] > 4
        assert found["answers"]["429"] > 4
        assert found["left"] > 4
        refused = found["metrics"]['request_refused_total{status="429"}']
        assert refused >= found["answers"]["429"]
        cancelled = found["metrics"]['request_success_total{finished_reason="cancelled"}']
        assert cancelled > 4
