"""T(n): measured, interpolated, kept, shown."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

import ouroboros
from ouroboros import InputError, cli
from ouroboros.bench.profiling import measure
from ouroboros.control.profile import FORMAT, CostProfile, load_profile, profile_path, save_profile
from ouroboros.models.base import CausalModel, ModelInfo, ScoreRequest, Slot
from tests.pairs import Pair

CLOCK = True
PROFILE = CostProfile(
    "m", "here", (1, 2, 8), (100, 300), ((1.0, 1.5, 4.5), (2.0, 2.5, 5.5)), ((0.1, 0.1, 0.1), (0.1, 0.1, 0.1))
)


@pytest.mark.parametrize(
    ("rows", "context", "seconds"),
    [(1, 100, 1.0), (2, 300, 2.5), (5, 100, 3.0), (8, 200, 5.0), (10, 100, 5.5), (1, 10, 1.0), (1, 500, 3.0)],
)
def test_costs_between_and_beyond_what_was_measured(rows: int, context: int, seconds: float) -> None:
    assert PROFILE.cost(rows, context) == pytest.approx(seconds)


def test_noise_does_not_make_large_forwards_free() -> None:
    odd = dataclasses.replace(PROFILE, contexts=(100,), seconds=((1.0, 1.5, 0.9),), spread=((0.0, 0.0, 0.0),))
    assert odd.cost(100, 100) == 0.9
    single = dataclasses.replace(odd, rows=(4,), seconds=((2.0,),), spread=((0.0,),))
    assert single.cost(1, 1) == single.cost(50, 50) == 2.0


class Clocked:
    """A model whose forwards take n² seconds, by a clock that only they move."""

    def __init__(self, model: CausalModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.info: ModelInfo = model.info
        self.now = 0.0
        self.sizes: list[int] = []
        self._model = model
        monkeypatch.setattr("ouroboros.control.machine.time.perf_counter", lambda: self.now)

    def open(self) -> Slot:
        return self._model.open()

    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        self._model.prefill(slot, token_ids)

    def score(self, requests: Sequence[ScoreRequest]) -> list[object]:
        (request,) = requests
        assert request.slot.pending == 0
        self.sizes.append(len(request.tree))
        self.now += len(request.tree) ** 2 * (1 + request.slot.length)
        return list(self._model.score(requests))


def test_every_size_is_measured_in_turns(tiny: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Clocked(tiny.target, monkeypatch)
    profile = measure(model, rows=[7, 1, 3], contexts=[10, 20], repeats=4)  # type: ignore[arg-type]
    assert (profile.rows, profile.contexts) == ((1, 3, 7), (10, 20))
    assert profile.seconds == ((11.0, 99.0, 539.0), (21.0, 189.0, 1029.0))
    assert profile.spread == ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    assert len(model.sizes) == 2 * 5 * 3
    assert len({tuple(model.sizes[i : i + 3]) for i in range(0, 30, 3)}) > 1, "always the same order"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": [0]}, "rows must be whole numbers of at least 1"),
        ({"contexts": []}, "context must be whole numbers of at least 1"),
        ({"repeats": 0}, "repeats must be a whole number of at least 1, not 0"),
        ({"rows": [64], "contexts": [500]}, "500 cached positions and 64 rows are more than the 512"),
    ],
)
def test_bad_sizes(tiny: Pair, settings: dict[str, list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure(tiny.target, **settings)  # type: ignore[arg-type]


def test_a_profile_is_kept_and_found(tiny: Pair, tmp_path: Path) -> None:
    path = profile_path(tiny.target.info, tmp_path / "deep")
    assert load_profile(path) is None
    save_profile(PROFILE, path)
    assert load_profile(path) == PROFILE
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    other = dataclasses.replace(tiny.target.info, dtype="bfloat16")
    assert profile_path(other, tmp_path / "deep") != path
    for broken in (
        "",
        "[]",
        '{"format": 99}',
        json.dumps({"format": FORMAT, "rows": [1], "contexts": [1], "seconds": []}),
    ):
        path.write_text(broken)
        assert load_profile(path) is None
    with pytest.raises(InputError, match=r"cannot write '.*below a file'"):
        save_profile(PROFILE, path / "below a file")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cli, "_load", lambda *args: ouroboros.load(dtype="float32", method=args[2]))
    return tmp_path


def test_the_command(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = home / "t.svg"
    assert cli.main(["profile", "--rows", "1,4", "--context", "8", "--repeats", "2", "--plot", str(plot)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"target, 8 positions cached: native \w+ 6917376 parameters", out)
    assert re.search(r"draft, 8 positions cached: native \w+ 2861280 parameters", out)
    assert b"<svg" in plot.read_bytes()
    files = list((home / "cache" / "ouroboros" / "profiles").iterdir())
    kept = [load_profile(file) for file in files]
    assert sorted(profile.rows for profile in kept if profile) == [(1, 4), (1, 4)]
    decoder = ouroboros.load(dtype="float32")
    assert {profile_path(decoder.target.info), profile_path(decoder.draft.info)} == set(files)  # type: ignore[union-attr]


def test_the_command_as_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["profile", "--rows", "1", "--context", "8", "--repeats", "1", "--no-save", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"target", "draft"}
    assert found["target"]["rows"] == [1]
    assert found["target"]["seconds"][0][0] > 0
    assert not (home / "cache").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--rows", "1,x"], "--rows must be whole numbers with commas between, not '1,x'"),
        (["--plot", "t.pdf"], "a plot's file must end in .png or .svg, not 't.pdf'"),
        (["--context", "9999"], "more than the 2048"),
    ],
)
def test_bad_options(home: Path, capsys: pytest.CaptureFixture[str], args: list[str], words: str) -> None:
    assert cli.main(["profile", *args]) == 2
    assert words in capsys.readouterr().err
