"""Replicas on a Ray cluster on this machine: one is killed, and nobody else's request notices.

Skipped without Ray Serve. The cluster listens on the loopback address, and ends with this module.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request

import ouroboros
from ouroboros import InputError
from ouroboros.integrations.ray_ingress import Ingress, merged_metrics, routing_key

PORT = 8917
ADDRESS = f"http://127.0.0.1:{PORT}"
REQUESTS, CLIENTS, TOKENS, KILLED_AFTER = 200, 16, 96, 60
PROMPTS = [
    f"def {name}({arguments}):\n" for name in ("add", "parse", "read", "close") for arguments in ("a, b", "self")
]


@dataclass
class Told:
    """What a client saw of one request."""

    place: int
    replica: str = ""
    text: str = ""
    error: str | None = None
    ended: bool = False


def body(place: int, **more: Any) -> dict[str, Any]:
    settings = {"temperature": 0.7 * (place % 2), "seed": place % 5, "max_tokens": TOKENS, "ignore_eos": True}
    return {"prompt": PROMPTS[place % len(PROMPTS)], "stream": True, **settings, **more}


# --- without a cluster ---


def test_what_begins_alike_is_for_one_replica() -> None:
    def key(asked: Any, **headers: str) -> str:
        return routing_key(
            {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(asked).encode()
        )

    system, question = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}
    chat = {"messages": [system, question], "max_tokens": 5}
    later = {"messages": [system, question, {"role": "assistant", "content": "So."}, question], "temperature": 1}
    assert key(chat) == key(later)
    assert key(chat) != key({"messages": [system, {"role": "user", "content": "How?"}]})
    assert key(chat) != key(chat, authorization="Bearer other")
    assert key(chat) != key({**chat, "memory": "other"})
    assert key({"prompt": "a" * 5000 + "b"}) == key({"prompt": "a" * 5000 + "c"})
    assert key({"prompt": "b"}) != key({"prompt": "c"})
    assert key({"prompt": "b"}, x_session_id="s") == key({"prompt": "c"}, x_session_id="s")
    assert key({"prompt": "b"}, x_session_id="s") != key({"prompt": "b"}, x_session_id="t")
    assert routing_key({}, b"\xff no JSON") == routing_key({}, b"")


def test_metrics_of_several_replicas_are_one_text() -> None:
    text = '# HELP a:b_total Of it.\n# TYPE a:b_total counter\na:b_total {0}\na:b_total{{kind="x"}} 2.0\n'
    found = merged_metrics({"r": text.format(1), "s": text.format(3)})
    assert found.splitlines() == [
        "# HELP a:b_total Of it.",
        "# TYPE a:b_total counter",
        'a:b_total{replica="r"} 1',
        'a:b_total{replica="r",kind="x"} 2.0',
        'a:b_total{replica="s"} 3',
        'a:b_total{replica="s",kind="x"} 2.0',
    ]


class Dying:
    """Stands for a handle: each answer is a list of messages, then perhaps an error."""

    def __init__(self, *answers: list[Any]) -> None:
        self.answers, self.asked, self.cancelled = list(answers), 0, 0

    def options(self, **settings: Any) -> Dying:
        return self

    def remote(self, scope: Any, body: bytes) -> Dying:
        self.asked += 1
        self.coming = iter(self.answers.pop(0))
        return self

    def __aiter__(self) -> Dying:
        return self

    async def __anext__(self) -> Any:
        one = next(self.coming, None)
        if one is None:
            raise StopAsyncIteration
        if isinstance(one, Exception):
            raise one
        return [one]

    def cancel(self) -> None:
        self.cancelled += 1


def relayed(replicas: Dying) -> tuple[int, bytes]:
    """Status and body that a client of the ingress sees."""
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
    asked = [{"type": "http.request", "body": b"{}", "more_body": False}]
    told: list[Any] = []

    async def receive() -> Any:
        return asked.pop()

    async def send(message: Any) -> None:
        told.append(message)

    async def run() -> None:
        answer = await Ingress(replicas, 1000)(Request(scope, receive))
        await answer(scope, receive, send)

    asyncio.run(run())
    return told[0]["status"], b"".join(one.get("body", b"") for one in told)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # of ray's own imports
def test_what_was_not_begun_is_asked_of_another_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = pytest.importorskip("ray.exceptions")
    from ray.serve.exceptions import BackPressureError

    monkeypatch.setattr("ouroboros.integrations.ray_ingress.PAUSE", 0.0)
    died = exceptions.RayActorError()
    whole = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
    stream = {**whole, "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}

    def body(data: bytes, more: bool) -> dict[str, Any]:
        return {"type": "http.response.body", "body": data, "more_body": more}

    replicas = Dying([whole, died], [died], [whole, body(b"{}", False)])
    assert relayed(replicas) == (200, b"{}")
    assert (replicas.asked, replicas.cancelled) == (3, 3)
    replicas = Dying([stream, died], [stream, body(b"data: 1", True), died])
    status, told = relayed(replicas)
    assert (status, replicas.asked) == (200, 2)
    assert told.startswith(b"data: 1data: {")
    assert b"replica_lost" in told
    assert relayed(Dying(*[[died]] * 4))[0] == 503
    assert relayed(Dying([BackPressureError(1, 1)]))[0] == 429


# --- with one ---


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of two replicas of the embedded pair."""
    ray = pytest.importorskip("ray")
    serve = pytest.importorskip("ray.serve")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    ray.init(_node_ip_address="127.0.0.1", include_dashboard=False, num_cpus=2, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        place = str(tmp_path_factory.mktemp("memories"))
        serve.run(ouroboros.ray_app(num_replicas=2, dtype="float32", memory_dir=place, save_every=1.0))
        yield serve.get_deployment_handle("Replica", "default")
    finally:
        serve.shutdown()
        ray.shutdown()


def states(handle: Any) -> list[dict[str, Any]]:
    return list(handle.broadcast("state").results(timeout_s=10))


def wait_for_replicas(handle: Any, count: int, seconds: float, without: str = "") -> list[dict[str, Any]]:
    limit = time.monotonic() + seconds
    found: list[dict[str, Any]] = []
    while time.monotonic() < limit:
        try:
            found = states(handle)
        except Exception:  # one of them has just died
            found = []
        if len(found) == count and all(one["replica"] != without for one in found):
            return found
        time.sleep(0.5)
    pytest.fail(f"there are {found} after {seconds} s")


async def ask(client: httpx.AsyncClient, told: Told, on_text: Any) -> None:
    async with client.stream("POST", f"{ADDRESS}/v1/completions", json=body(told.place)) as answer:
        told.replica = answer.headers.get("x-ouroboros-replica", "")
        if answer.status_code != 200:
            told.error = f"{answer.status_code}"
            return
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                told.ended = True
            elif line.startswith("data: "):
                payload = json.loads(line[6:])
                if "error" in payload:
                    told.error = payload["error"]["code"]
                    return
                told.text += payload["choices"][0]["text"]
                on_text(told)


async def load(victim: dict[str, Any]) -> list[Told]:
    """All requests from all clients; the victim is killed in the middle of a text that it writes."""
    places, finished, killed = iter(range(REQUESTS)), 0, False

    def kill(told: Told) -> None:
        nonlocal killed
        if not killed and finished >= KILLED_AFTER and told.replica == victim["replica"]:
            killed = True
            os.kill(victim["pid"], signal.SIGKILL)

    async def work(client: httpx.AsyncClient) -> list[Told]:
        nonlocal finished
        own = []
        for place in places:
            own.append(Told(place))
            await ask(client, own[-1], kill)
            finished += 1
        return own

    async with httpx.AsyncClient(timeout=60) as client:
        found = await asyncio.gather(*(work(client) for _ in range(CLIENTS)))
    assert killed
    return [told for own in found for told in own]


def truths() -> dict[int, str]:
    with ouroboros.load(dtype="float32", pool=False) as decoder:
        found = {}
        for place in range(REQUESTS):
            asked = body(place)
            key = place % (len(PROMPTS) * 5)
            settings = {"temperature": asked["temperature"], "seed": asked["seed"]}
            if key not in found:
                found[key] = decoder.generate(asked["prompt"], max_new_tokens=TOKENS, ignore_eos=True, **settings).text
        return found


@pytest.mark.ray
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore")
def test_a_replica_that_is_killed_takes_no_other_s_request_with_it(handle: Any) -> None:
    expected = truths()
    victim, other = wait_for_replicas(handle, 2, 30)
    told = asyncio.run(load(victim))
    assert len(told) == REQUESTS
    lost = [one for one in told if one.error is not None]
    for one in told:
        truth = expected[one.place % (len(PROMPTS) * 5)]
        if one.error is None:
            assert one.ended
            assert one.text == truth
        else:
            assert (one.replica, one.error) == (victim["replica"], "replica_lost")
            assert truth.startswith(one.text)
    assert lost  # those that it was writing
    assert len(lost) <= CLIENTS
    assert sum(one.replica == other["replica"] for one in told) > 0
    wait_for_replicas(handle, 2, 60, without=victim["replica"])
    again = httpx.post(f"{ADDRESS}/v1/completions", json=body(1, stream=False), timeout=30)
    assert again.json()["choices"][0]["text"] == expected[1]


@pytest.mark.ray
@pytest.mark.timeout(200)
@pytest.mark.filterwarnings("ignore")
def test_a_client_that_goes_away_stops_the_engine(handle: Any) -> None:
    wait_for_replicas(handle, 2, 60)
    with httpx.stream("POST", f"{ADDRESS}/v1/completions", json=body(0, max_tokens=1900), timeout=30) as answer:
        next(answer.iter_lines())
        assert sum(one["running"] for one in states(handle)) == 1
    limit = time.monotonic() + 1.0
    while sum(one["running"] for one in states(handle)):
        assert time.monotonic() < limit


@pytest.mark.ray
@pytest.mark.timeout(200)
@pytest.mark.filterwarnings("ignore")
def test_the_server_s_own_routes_and_refusals(handle: Any) -> None:
    wait_for_replicas(handle, 2, 60)
    assert httpx.get(f"{ADDRESS}/health").json() == {"status": "ok"}
    metrics = httpx.get(f"{ADDRESS}/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(metrics)}
    running = families["ouroboros:num_requests_running"]
    assert len({sample.labels["replica"] for sample in running.samples}) == 2
    assert httpx.get(f"{ADDRESS}/v1/models").json()["data"][0]["id"] == "ouroboros"
    refused = httpx.post(f"{ADDRESS}/v1/completions", json=body(0, temperature=9))
    assert refused.status_code == 400
    assert "temperature" in refused.json()["error"]["message"]
    large = httpx.post(f"{ADDRESS}/v1/completions", json=body(0, prompt="x" * (9 << 20)), timeout=30)
    assert large.status_code == 413
    sessions = [
        httpx.post(
            f"{ADDRESS}/v1/completions",
            json=body(place, stream=False, max_tokens=2),
            headers={"x-session-id": f"s{place % 3}"},
        ).headers["x-ouroboros-replica"]
        for place in range(9)
    ]
    assert sessions[:3] == sessions[3:6] == sessions[6:]


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # of ray's own imports
def test_bad_values_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    click = pytest.importorskip("click")
    from ouroboros.integrations.ray_serve import app

    with pytest.raises(InputError, match=r"num_replicas must be a whole number of at least 1, not 0"):
        ouroboros.ray_app(num_replicas=0)
    with pytest.raises(InputError, match=r"max_replicas must be a whole number of at least 3, not 2"):
        ouroboros.ray_app(num_replicas=3, max_replicas=2)
    with pytest.raises(InputError, match=r"num_gpus must be a number of at least 0, not -1"):
        ouroboros.ray_app(num_gpus=-1)
    with pytest.raises(InputError, match="method"):
        ouroboros.ray_app(method="guessing")
    for words, told in (
        ({"num_replicas": "many"}, "num_replicas.*'many'"),
        ({"colour": "red"}, "colour"),
        ({"max_requests": "0"}, "max_requests must be"),
    ):
        with pytest.raises(click.ClickException, match=told):
            app(words)


def test_ray_app_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"ray_app needs ray: pip install 'ouroboros-decoding\[ray\]'"):
        ouroboros.ray_app()
