"""Tuning: replay in measured times, real runs of the best, and a small file that loading picks up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ouroboros
from ouroboros import Decoder, OuroborosOptions, SamplingParams, cli
from ouroboros.bench.search import search
from ouroboros.bench.timed import TimedModel, VirtualClock
from ouroboros.config import options_for
from ouroboros.control.profile import CostProfile, PairProfile
from ouroboros.control.tuned import Tuned, load_tuned, save_tuned, tuned_path
from tests.pairs import Pair


def profile(*times: tuple[int, float]) -> CostProfile:
    """T(n) from (n, milliseconds)."""
    rows, seconds = tuple(n for n, _ in times), tuple(ms / 1000 for _, ms in times)
    return CostProfile("", "", rows, (64,), (seconds,), ((0.0,) * len(rows),))


STEEP = PairProfile(profile((1, 20), (8, 22), (16, 36), (64, 140)), profile((1, 3), (8, 3.5), (64, 18)))
FLAT = PairProfile(profile((1, 20), (256, 21)), profile((1, 2), (256, 2.1)))

CLOCK = True
Settings = tuple[dict[str, Any], ...]
PROMPTS = [[1, 2, 3, 4, 5], [3, 1, 4, 1, 5, 9, 2, 6]]


def quiet(stage: str, done: int, total: int, note: str) -> None: ...


def test_a_virtual_clock_takes_what_the_profile_says(tiny: Pair) -> None:
    clock = VirtualClock()
    profile = CostProfile("", "", (1, 4), (8,), ((1.0, 2.5),), ((0.0, 0.0),))
    model = TimedModel(tiny.target, profile, clock)
    decoder = Decoder(model, None, None, "autoregressive", options_for("autoregressive"), None)
    result = decoder.generate([1, 2, 3], max_new_tokens=6, ignore_eos=True)
    assert clock.seconds == 6.0
    params = SamplingParams(6, ignore_eos=True)
    plain = Decoder(tiny.target, None, None, "autoregressive", options_for("autoregressive"), None)
    assert plain.generate([1, 2, 3], params).token_ids == result.token_ids


def test_replay_ranks_by_what_forwards_cost(tiny: Pair) -> None:
    """A wide fixed tree is best where rows are free and worst where they are not."""
    wide: dict[str, Any] = {"control": False, "draft_tokens": 8, "tree_tokens": 64, "siblings": 4, "min_chance": 0.0}
    settings: Settings = ({}, wide, {"control": False, "draft_tokens": 1, "tree_tokens": 1})

    def replayed(costs: PairProfile) -> list[float]:
        _, tried = search(tiny.target, tiny.drafts["similar"], costs, PROMPTS, 16, (0.0,), quiet, settings)
        speeds = {json.dumps(one.options): one.replayed or 0.0 for one in tried}
        return [speeds[json.dumps(one)] for one in settings]

    steep, flat = replayed(STEEP), replayed(FLAT)
    assert steep[1] < steep[2]
    assert flat[1] > flat[2]
    assert replayed(STEEP) == steep  # no clock on the wall has a say


def test_the_search_confirms_by_real_runs(tiny: Pair) -> None:
    settings: Settings = ({}, {"siblings": 1}, {"window": 0})
    found, tried = search(tiny.target, tiny.drafts["similar"], STEEP, PROMPTS, 12, (0.0, 0.8), quiet, settings)
    assert tried[-1].options is None
    assert tried[-1].measured
    measured = [one for one in tried if one.measured]
    assert {} in [one.options for one in measured]
    assert found.options in [one.options for one in measured]
    assert (found.prompts, found.new_tokens, found.temperatures) == (2, 12, (0.0, 0.8))


def test_loading_takes_what_was_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = ouroboros.load()
    assert first.draft is not None
    path = tuned_path(first.target.info, first.draft.info)
    assert path.is_relative_to(tmp_path)
    tuned = Tuned("t", "d", "m", {"siblings": 3, "window": 0}, 2.0, 4, 64, (0.0,))
    save_tuned(tuned, path)
    assert load_tuned(path) == tuned
    assert ouroboros.load().options == OuroborosOptions(siblings=3, window=0)
    assert ouroboros.load(options={}).options == OuroborosOptions()
    assert ouroboros.load(options={"siblings": 1}).options == OuroborosOptions(siblings=1)
    for broken in ("", "{}", '{"format": 1}', json.dumps({"format": 1, "options": {"siblings": -1}})):
        path.write_text(broken)
        assert load_tuned(path) is None
        assert ouroboros.load().options == OuroborosOptions()


def test_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("ouroboros.bench.search.SETTINGS", ({}, {"siblings": 1}))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "def add(a, b):"}\n{"prompt": "import os"}\n')
    words = ["tune", "--prompt-file", str(prompts), "--new-tokens", "8", "--temperature", "0.5", "--json"]
    assert cli.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompts"] == 2
    assert found["speed_up"] > 0
    assert Path(found["file"]).is_file()
    assert len(list((tmp_path / "ouroboros" / "profiles").iterdir())) == 2
    assert ouroboros.load().options == options_for("ouroboros", found["options"])


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--target", "T"], "--draft"),
        (["--prompts", "0"], "--prompts"),
        (["--new-tokens", "1"], "--new-tokens"),
        (["--temperature", "-1"], "temperature"),
    ],
)
def test_bad_input(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", *words]) == 2
    error = capsys.readouterr().err
    assert part in error
    assert "Traceback" not in error
