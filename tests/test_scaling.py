"""The simulated fleets: what they say where one can say it without them."""

from __future__ import annotations

import pytest

import ouroboros
from benchmarks.fleet import POLICIES, Curve, Traffic, simulate
from benchmarks.virtual_engine import CARDS, YI_34B, Virtual, asks, decoder_of, serve

CURVE = Curve({1: 30.0, 8: 200.0, 32: 700.0, 128: 1900.0}, 1e-4)


def test_a_forward_waits_for_memory_or_for_arithmetic() -> None:
    card = CARDS["h200"]
    one = YI_34B.seconds(card, 1, 0)
    assert one == pytest.approx(60 * 20e-6 + 68.8e9 / 4.8e12)
    assert YI_34B.seconds(card, 100, 0) == one
    assert YI_34B.seconds(card, 1000, 0) == pytest.approx(60 * 20e-6 + 1000 * 68.8e9 / 989e12)
    assert YI_34B.seconds(card, 1, 100_000) - one == pytest.approx(100_000 * 245_760 / 4.8e12)


def test_the_scheduler_in_virtual_time_writes_the_same_and_takes_what_the_roofline_says() -> None:
    with ouroboros.load(dtype="float32", pool=False, threads=1) as pair:
        for label in ("autoregressive", "ouroboros"):
            decoder, clock = decoder_of(pair, CARDS["h200"], label, before=0)
            asked = list(asks(6))
            runs = serve(decoder, clock, asked, at_once=3)
            assert [sum(tokens for _, tokens in run.steps) for run in runs] == [ask.tokens for ask in asked]
            assert all(run.ended for run in runs)
            assert runs[3].steps[0][0] > min(run.steps[-1][0] for run in runs[:3])  # three at once, no more
            if label == "autoregressive":
                assert isinstance(decoder.target, Virtual)
                least = YI_34B.seconds(CARDS["h200"], 1, 0)
                assert clock.seconds > least * max(ask.tokens for ask in asked)
                assert clock.seconds < least * sum(ask.tokens for ask in asked)


def test_a_request_alone_has_the_speed_of_one() -> None:
    served = simulate(CURVE, 1, 0.01, 20_000, Traffic(turns=1.0), POLICIES["round robin"]())
    assert served.requests > 50
    assert served.token[0] == pytest.approx(1 / 30, rel=0.02)
    assert served.cached == 0
    assert 0 < served.first[0] < 10 * 1200 * 1e-4


def test_more_than_it_can_serve_waits_longer_and_longer() -> None:
    short, long = (simulate(CURVE, 1, 8.0, s, Traffic(turns=1.0), POLICIES["round robin"]()) for s in (60.0, 240.0))
    assert long.first[1] > 1.5 * short.first[1] > 1.0
    assert long.tokens < 1900 * 1.01
    never = simulate(CURVE, 1, 40.0, 30, Traffic(turns=1.0), POLICIES["round robin"]())
    assert never.first[1] == float("inf")


def test_chats_find_their_caches_where_they_were() -> None:
    found = {name: simulate(CURVE, 8, 1.0, 400, Traffic(), policy()) for name, policy in POLICIES.items()}
    alone = simulate(CURVE, 1, 1.0, 400, Traffic(), POLICIES["round robin"]())
    assert found["by prefix"].cached == pytest.approx(alone.cached, abs=0.05)
    assert found["round robin"].cached < 0.5 * found["by prefix"].cached
    assert found["by prefix"].first[0] < found["round robin"].first[0]


def test_bursts_come_as_often_and_wait_longer() -> None:
    calm, bursts = (
        simulate(CURVE, 1, 4.0, 2000, Traffic(bursty=bursty), POLICIES["round robin"]()) for bursty in (False, True)
    )
    assert bursts.requests == pytest.approx(calm.requests, rel=0.15)
    assert bursts.first[1] > calm.first[1]
