"""The benchmark: what runs, what is written, what follows from it; resuming, tuning, reports. Tiny models."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ouroboros import cli
from ouroboros.bench.benchmark import benchmark
from ouroboros.bench.bounds import bounds
from ouroboros.bench.cases import cut, plan, token_ids
from ouroboros.bench.comparisons import ours
from ouroboros.bench.excerpt import BEGIN, END, write_excerpt
from ouroboros.bench.figures import Figures
from ouroboros.bench.measuring import agreement, decoder_for
from ouroboros.bench.pair import BenchPair
from ouroboros.bench.peers import Absent, PeerResult
from ouroboros.bench.records import Case, Results, Run, read_results
from ouroboros.bench.report import markdown
from ouroboros.bench.reproduced import reproduced
from ouroboros.bench.settings import BenchSettings, contestants
from ouroboros.bench.tasks import Item
from ouroboros.bench.tuning import GRIDS, replay, settings_of, tune
from ouroboros.config import METHODS, SamplingParams, options_for
from ouroboros.control.profile import CostProfile
from ouroboros.errors import InputError
from ouroboros.generate import Decoder
from ouroboros.models.recorded import RecordedModel, Recording
from ouroboros.pairing import EMBEDDED, load
from ouroboros.stats import chain_bound, speculative_estimate
from tests.pairs import Pair

TINY = BenchSettings(
    tasks=("one", "two"),
    prompts=2,
    warm_prompts=1,
    tuning_prompts=1,
    new_tokens=10,
    states=("cold", "warm", "shuffled"),
    ablation=True,
    variants=("fixed=ouroboros:tree_tokens=16,control=off",),
    peers=("mirror", "gone"),
    peer_prompts=1,
    seed=3,
)
SMALL = dataclasses.replace(TINY, states=("cold",), ablation=False, variants=(), peers=(), tuning_prompts=0)


def items(name: str, *, source: str | None = None, limit: int | None = None, offset: int = 0) -> Sequence[Item]:
    assert source is None
    draws = random.Random(name)
    every = [Item(name, str(n), draws.choices(range(6), k=8 + n)) for n in range(5)]
    return every[offset : None if limit is None else offset + limit]


class Mirror:
    """A peer that writes what plain decoding writes, greedy; and something else where it samples."""

    name = "mirror"
    settings: dict[str, object] = {"way": "mirrored"}  # noqa: RUF012

    def __init__(self, pair: Pair) -> None:
        self.closed = 0
        self._decoder = load(pair.target, method="autoregressive")

    def generate(
        self, prompt_ids: Sequence[int], new_tokens: int, *, temperature: float, seed: int, ignore_eos: bool
    ) -> PeerResult:
        params = SamplingParams(new_tokens, temperature, seed=seed + 1, ignore_eos=ignore_eos)
        found = self._decoder.generate(list(prompt_ids), params)
        return PeerResult(found.token_ids, 0.25, 0.5, new_tokens - 1)

    def close(self) -> None:
        self.closed += 1


def run(pair: Pair, path: Path, settings: BenchSettings = TINY, stop: int | None = None, **more: Any) -> Results:
    """``stop``: interrupt after so many cases."""
    told: list[str] = []

    def tell(stage: str, done: int, total: int, note: str) -> None:
        assert 0 <= done <= total
        if stage == "benchmark" and stop is not None and done >= stop:
            raise KeyboardInterrupt

    def open_decoder(target: str | None, draft: str | None, method: str) -> Decoder:
        drafts = pair.drafts["similar"] if method != "autoregressive" else None
        return Decoder(pair.target, drafts, None, method, options_for(method), None)

    def peers(names: Sequence[str], **others: Any) -> list[Any]:
        assert others["dtype"] == "float64"
        return [Mirror(pair) if name == "mirror" else Absent(name, "it went away") for name in names]

    kept = path.parent / "kept"
    return benchmark(
        settings, path, open_decoder, tell, told.append, load_items=items, peers_of=peers, tuned_directory=kept, **more
    )


@pytest.fixture(scope="module")
def found(tiny: Pair, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run(tiny, tmp_path_factory.mktemp("bench") / "results.jsonl")


def keep_search(found: Results, directory: Path) -> None:
    """It goes by the measured T(n), and would choose otherwise another time."""
    (directory / "kept").mkdir()
    for path in (found.path.parent / "kept").iterdir():
        (directory / "kept" / path.name).write_text(path.read_text())


def counts(results: Results, controlled: bool = False) -> dict[Any, Any]:
    """All counts, step sizes and tokens; without the controller's, which watches the clock."""
    names = ("new_tokens", "target_forwards", "draft_forwards", "draft_tokens", "accepted_by_origin", "same")
    return {
        (*key, run.label): [getattr(run, name) for name in names] + [[tokens for tokens, _ in run.steps]]
        for key, case in results.cases.items()
        for run in case.runs
        if controlled or run.method != "ouroboros" or run.label.startswith("fixed")
    }


# ------------------------------------------------------------------------------------------------------------- running


def test_every_contestant_meets_every_case(found: Results) -> None:
    labels = {one.label for one in contestants(TINY)}
    assert {"autoregressive", "ouroboros, cold", "ouroboros, shuffled", "without reuse, warm", "fixed, cold"} <= labels
    assert len(found.cases) == 2 * 2 * 2
    for (task, item, _, _), case in found.cases.items():
        first = item == next(key[1] for key in found.cases if key[0] == task)
        assert {run.label for run in case.runs} == labels | ({"mirror"} if first else set())
        assert case.token_ids
        assert case.prompt_tokens == 8 + int(item)
        for one in case.runs:
            if one.label != "mirror":
                assert one.same, one.label
                assert sum(tokens for tokens, _ in one.steps) == one.new_tokens == 10
                assert len(one.steps) == one.target_forwards
                assert sum(seconds for _, seconds in one.steps) >= one.decode_seconds > 0
    assert {case.item for case in found.cases.values()} == {"0", "1"}, "others warm and tune"
    assert found.absent == {"gone": "it went away"}
    assert found.peers == {"mirror": {"way": "mirrored"}}


def test_limits_hold_and_figures_are_of_the_same_prompts(tiny: Pair, tmp_path: Path) -> None:
    """Peers, shuffled memories and the ablation on the first prompts alone; an interruption changes nothing of that."""
    settings = dataclasses.replace(
        TINY, shuffled_prompts=1, ablation_prompts=1, ablation_tasks=("two",), variants=(), tuning_prompts=0
    )
    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path / "results.jsonl", settings, stop=3)
    found = run(tiny, tmp_path / "results.jsonl", settings)
    for (task, item, _, _), case in found.cases.items():
        labels = {run.label for run in case.runs}
        assert ("mirror" in labels) == ("ouroboros, shuffled" in labels) == (item == "0"), (task, item)
        assert ("without reuse, warm" in labels) == ((task, item) == ("two", "0"))
        assert {"ouroboros, cold", "ouroboros, warm", "autoregressive"} <= labels
    figures = Figures(found)
    ablated = figures.where("without reuse, warm")
    assert ablated.tasks == ["two"]
    assert ablated.totals("ouroboros, warm", 0.0).compared == 1
    assert figures.totals("ouroboros, warm", 0.0).compared == 4
    text = markdown(found)
    assert "- other programs ran on the first prompt of each task\n" in text
    assert "- shuffled memories ran on the first prompt of each task\n" in text
    assert "- the ablation ran on the first prompt of each task (two alone)\n" in text
    assert "| mirror | 2 |" in text
    assert "| ouroboros, warm | 4 |" in text
    assert "unfinished" not in text
    half = dataclasses.replace(found, cases=dict(list(found.cases.items())[:3]))
    assert "- **unfinished**: 1 of 4 prompts" in markdown(half)
    with pytest.raises(InputError, match="ablation_tasks must be some of one, two, not 'three'"):
        plan(dataclasses.replace(TINY, ablation_tasks=("three",)), items)


def test_the_best_rival_is_of_the_same_state_and_prompts(found: Results) -> None:
    seconds = {"autoregressive": 8.0, "speculative": 2.0, "lookahead, cold": 4.0, "lookahead, warm": 1.0}
    cases = {}
    for key, case in found.cases.items():
        runs = []
        for one in case.runs:
            taken = 3.0 if one.label.startswith("ouroboros") else seconds.get(one.label, 9.0)
            if one.label == "speculative" and key[0] == "two":
                taken = 6.0
            runs.append(dataclasses.replace(one, decode_seconds=taken))
        cases[key] = dataclasses.replace(case, runs=tuple(runs), repeated_4grams=0.0)
    figures = Figures(dataclasses.replace(found, cases=cases))
    for task, rival, ratio in (("one", "speculative", 2 / 3), ("two", "lookahead, cold", 4 / 3)):
        best = figures.best_rival("ouroboros, cold", task, 0.0)
        assert best is not None
        assert best[0] == rival
        assert best[1].value == pytest.approx(ratio)
    mean = figures.over_best("ouroboros, cold", ("one", "two"), 0.0)
    assert mean is not None
    assert mean.value == pytest.approx(math.sqrt(8 / 9))
    assert mean.items == 4
    warm = figures.best_rival("ouroboros, warm", "one", 0.0)
    assert warm is not None
    assert warm[0] == "lookahead, warm"
    text = markdown(dataclasses.replace(found, cases=cases))
    assert "\n## Against the best rival of each task, greedy\n" in text
    assert "| one | 2.67 | speculative | 0.67 |" in text


def test_the_order_rotates(found: Results) -> None:
    firsts = [case.runs[0].label for case in found.cases.values()]
    assert len(set(firsts)) == len(firsts)


def test_memories(found: Results) -> None:
    """Cold: nothing is known of other prompts; warm: the same is known each time; shuffled: more and more."""
    offered = dict.fromkeys(("cold", "warm", "shuffled"), 0)
    for case in found.cases.values():
        for one in case.runs:
            name, _, state = one.label.partition(", ")
            if name == "token_recycling":  # it knows a token's successors when it has met the token
                offered[state] += one.draft_tokens
    assert offered["cold"] < min(offered["warm"], offered["shuffled"])
    first = next(iter(found.cases.values()))
    runs = {one.label: one for one in first.runs}
    names = ("target_forwards", "draft_tokens", "accepted_by_origin")
    same = [[getattr(runs[f"token_recycling, {state}"], name) for name in names] for state in ("cold", "shuffled")]
    assert same[0] == same[1], "nothing came before"


def test_a_second_run_has_the_same_counts(found: Results, tiny: Pair, tmp_path: Path) -> None:
    frozen = dataclasses.replace(TINY, frozen=str(found.path))
    again = run(tiny, tmp_path / "results.jsonl", frozen)
    assert counts(again) == counts(found)
    third = run(tiny, tmp_path / "again.jsonl", frozen)
    assert counts(third, controlled=True) == counts(again, controlled=True)
    held = reproduced(again, third)
    assert held.runs == sum(len(case.runs) for case in again.cases.values())
    assert held.different == ()
    assert {row.label for row in held.rows} == {run.label for case in again.cases.values() for run in case.runs} - {
        "autoregressive"
    }
    assert f"{held.runs} runs are in both; the counts and tokens of 0 of them differ." in held.markdown()
    assert (again.profiles, again.tuning, again.options) == (found.profiles, found.tuning, found.options)
    other = {**found.environment, "models": {"target": "another"}}
    first, rest = found.path.read_text().split("\n", 1)
    path = tmp_path / "other.jsonl"
    path.write_text(json.dumps({**json.loads(first), **other}) + "\n" + rest)
    with pytest.raises(InputError, match="holds results with other models"):
        run(tiny, tmp_path / "third.jsonl", dataclasses.replace(TINY, frozen=str(path)))


def test_what_differs_between_two_runs_is_named(found: Results, capsys: pytest.CaptureFixture[str]) -> None:
    (key, case), *_ = found.cases.items()
    runs = []
    for one in case.runs:
        slower = one.decode_seconds * (2.0 if one.label == "speculative" else 1.0)
        more = one.draft_forwards + (one.label == "speculative")
        runs.append(dataclasses.replace(one, decode_seconds=slower, draft_forwards=more))
    other = dataclasses.replace(found, cases={key: dataclasses.replace(case, runs=tuple(runs))})
    held = reproduced(found, other)
    assert held.runs == len(case.runs)
    assert len(held.different) == 1
    assert held.different[0].startswith("speculative on ")
    assert held.different[0].endswith(": draft_forwards")
    ratios = {row.label: row.ratio for row in held.rows if row.task is None}
    assert ratios["speculative"] == pytest.approx(0.5)
    assert ratios["prompt_lookup"] == pytest.approx(1.0)
    assert "differ by at most 100.0% (speculative, " in held.markdown()
    with pytest.raises(InputError, match="have no prompt in common"):
        reproduced(found, dataclasses.replace(found, cases={}))
    assert cli.main(["bench", "compare", str(found.path), str(found.path)]) == 0
    assert "of 0 of them differ" in capsys.readouterr().out


def test_compact_results_say_the_same(found: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small.jsonl.xz"
    assert cli.main(["bench", "compact", str(found.path), str(small)]) == 0
    assert small.stat().st_size < found.path.stat().st_size / 2
    read, written = read_results(small), read_results(found.path)
    assert (read.settings, read.environment, read.options) == (found.settings, found.environment, found.options)
    for key, case in written.cases.items():
        for run, kept in zip(case.runs, read.cases[key].runs, strict=True):
            assert dataclasses.replace(kept, steps=run.steps) == run
            assert sorted(tokens for tokens, _ in kept.steps) == sorted(tokens for tokens, _ in run.steps)
            total, exact = (sum(seconds for _, seconds in one.steps) for one in (kept, run))
            assert total == pytest.approx(exact, rel=5e-3)
            assert [seconds for _, seconds in kept.steps[:1]] == pytest.approx([s for _, s in run.steps[:1]], rel=5e-3)
    with pytest.raises(InputError, match="are for reading"):
        read.go_on()
    assert cli.main(["bench", "compact", str(found.path), str(tmp_path / "small.json")]) == 2
    assert "must end in .xz" in capsys.readouterr().err
    small.write_bytes(small.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot read the results"):
        read_results(small)


def test_the_results_that_are_kept_can_be_read_and_are_small() -> None:
    kept = Path(__file__).parents[1] / "benchmarks" / "results"
    assert [file.name for file in kept.iterdir() if file.stat().st_size > 200_000] == []
    names = sorted(file.name for file in kept.glob("bench*"))
    assert names == ["bench-fp32.jsonl", "bench-full.jsonl.xz", "bench-later.jsonl.xz", "bench.jsonl.xz"]
    for name in names:
        found = read_results(kept / name)
        assert found.cases
        assert found.profiles["target"].seconds


def test_an_excerpt_stands_between_its_comments(found: Results, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n\n{BEGIN}\nearlier\n{END}\n\nafter\n")
    assert cli.main(["bench", "report", str(found.path), "--excerpt", str(readme)]) == 0
    text = readme.read_text()
    write_excerpt(read_results(found.path), readme)
    assert readme.read_text() == text, "again the same"
    assert text.startswith(f"before\n\n{BEGIN}\nSpeed-up over plain decoding")
    assert text.endswith(f"{END}\n\nafter\n")
    assert "earlier" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert (
        rows[0] == "| method | prompts | greedy, cold | greedy, warm | temperature 0.8, cold | temperature 0.8, warm |"
    )
    assert len({row.count("|") for row in rows}) == 1
    for name in ("autoregressive", "mirror", "lookahead", "**ouroboros**", "ouroboros over the best of each task"):
        assert sum(row.startswith(f"| {name} |") for row in rows) == 1
    readme.write_text("nothing")
    with pytest.raises(InputError, match="has no place for the benchmark"):
        write_excerpt(found, readme)


def test_an_interrupted_run_goes_on(found: Results, tiny: Pair, tmp_path: Path) -> None:
    keep_search(found, tmp_path)
    path = tmp_path / "results.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(tiny, path, stop=3)
    assert len(read_results(path).cases) == 3
    text = path.read_text()
    half = text + '{"kind":"run","label":"autoregressive","met'
    path.write_text(half)
    assert len(read_results(path).cases) == 3
    done = run(tiny, path)
    assert counts(done) == counts(found) == counts(read_results(path))
    assert path.read_text().startswith(text)
    lines = path.read_text().splitlines()
    assert sum(json.loads(line)["kind"] == "tuning" for line in lines) == 1
    before = path.read_text()
    run(tiny, path)
    assert path.read_text() == before, "there was nothing left to do"


def test_results_of_something_else_are_refused(found: Results, tiny: Pair, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(found.path.read_text())
    with pytest.raises(InputError, match="holds results of other settings: new_tokens 10, not 11"):
        run(tiny, path, dataclasses.replace(TINY, new_tokens=11))
    first, rest = path.read_text().split("\n", 1)
    other = {**json.loads(first), "machine": "elsewhere"}
    path.write_text(json.dumps(other) + "\n" + rest)
    with pytest.raises(InputError, match="holds results of another machine: 'elsewhere', not"):
        run(tiny, path)
    path.write_text("{}\n")
    with pytest.raises(InputError, match=r"line 1 of .* is none of a benchmark's results"):
        read_results(path)


def test_results_are_read_as_they_were_written(found: Results) -> None:
    again = read_results(found.path)
    assert again.profiles == found.profiles
    assert again.settings == TINY.to_dict()
    assert BenchSettings.from_dict(again.settings) == TINY
    assert again.tuning == found.tuning
    assert again.options == found.options
    assert again.options["fixed, cold"]["0.8"]["tree_tokens"] == 16
    assert counts(again) == counts(found)
    assert markdown(again).split("\n## ")[0] == markdown(found).split("\n## ")[0]


def test_a_peer_that_fails_is_absent_from_there_on(tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Mirror.generate

    def fail(
        self: Mirror, prompt_ids: Sequence[int], new_tokens: int, *, temperature: float, **more: Any
    ) -> PeerResult:
        if temperature:
            raise RuntimeError("out of\nluck")
        return right(self, prompt_ids, new_tokens, temperature=temperature, **more)

    monkeypatch.setattr(Mirror, "generate", fail)
    found = run(tiny, tmp_path / "results.jsonl", dataclasses.replace(SMALL, peers=("mirror",), tasks=("one",)))
    assert found.absent == {"mirror": "it failed: out of luck"}
    assert [sum(one.label == "mirror" for one in case.runs) for case in found.cases.values()] == [1, 0, 0, 0]


# -------------------------------------------------------------------------------------------------------------- tuning


def test_each_baseline_has_the_best_setting_of_its_grid(found: Results, tmp_path: Path) -> None:
    assert found.tuning is not None
    best = {(one["method"], one["temperature"]): one["options"] for one in found.tuning["best"]}
    assert set(best) == {(method, t) for method in GRIDS for t in (0.0, 0.8)}
    assert "ouroboros" not in GRIDS
    for method in GRIDS:
        every = list(settings_of(method))
        assert len(every) == len({json.dumps(one) for one in every}) > 4
        for temperature in (0.0, 0.8):
            own = [t for t in found.tuning["trials"] if (t["method"], t["temperature"]) == (method, temperature)]
            assert [trial["options"] for trial in own] == every
            speeds = [trial["tokens_per_second"] or 0 for trial in own]
            assert own[speeds.index(max(speeds))]["options"] == best[method, temperature]
            label = method if method in ("speculative", "prompt_lookup") else f"{method}, warm"
            used = found.options[label][f"{temperature:g}"]
            assert {name: used[name] for name in best[method, temperature]} == best[method, temperature]
    assert found.tuning["prompts"] == ["two 3"]


@pytest.mark.parametrize("method", ["speculative", "lookahead", "token_recycling", "suffix_decoding"])
def test_a_replayed_setting_takes_what_its_rows_cost(tiny: Pair, method: str) -> None:
    pair = BenchPair(tiny.target, tiny.drafts["similar"], None, "t", "d")
    costs = {"target": flat(1000.0), "draft": flat(1.0)}
    params = SamplingParams(20, 0.8, seed=3)
    options = METHODS[method](**list(settings_of(method))[2])
    recording = Recording()
    plain = decoder_for(pair, "autoregressive", {}, RecordedModel(tiny.target, recording)).generate([1, 2, 1], params)
    seconds = replay(pair, recording, method, options, plain, params, costs)
    stats = decoder_for(pair, method, options).generate([1, 2, 1], params).stats
    rows, draft_rows = divmod(round(seconds), 1000)
    if method == "lookahead":  # its window's rows are no draft tokens
        assert rows >= stats.target_forwards + stats.draft_tokens
    else:
        assert rows == stats.target_forwards + stats.draft_tokens
    assert (draft_rows >= stats.draft_forwards > 0) == (method == "speculative")
    assert replay(pair, recording, method, options, plain, params, costs, limit=3000.0) == math.inf
    assert seconds == replay(pair, recording, method, options, plain, params, costs), "no clock decides"


def flat(seconds: float) -> CostProfile:
    """Of a row."""
    return CostProfile("m", "here", (1, 2), (1,), ((seconds, 2 * seconds),), ((0.0, 0.0),))


def test_no_prompt_chooses_for_all(tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that takes a hundred times the seconds of another has the same say: the geometric mean decides."""

    def replayed(
        pair: object, recording: object, method: str, options: Any, plain: Any, params: Any, costs: object, limit: float
    ) -> float:
        slow = list(plain.prompt_token_ids) == chosen.tuning[0].prompt
        taken = {1: (100.0, 3.0), 2: (110.0, 2.0)}.get(options.draft_tokens, (180.0, 4.0))[0 if slow else 1]
        tried.append((options.draft_tokens, slow, params.temperature))
        return taken if taken <= limit else math.inf

    settings = dataclasses.replace(SMALL, tuning_prompts=2, methods=("speculative",))
    pair = BenchPair(tiny.target, tiny.drafts["similar"], None, "t", "d")
    chosen = plan(settings, items)
    tried: list[tuple[int, bool, float]] = []
    monkeypatch.setattr("ouroboros.bench.tuning.replay", replayed)
    found = tune(settings, pair, chosen, {}, lambda *told: None, tmp_path)
    assert [one["options"] for one in found["best"]] == [{"draft_tokens": 2}] * 2
    assert {t for _, _, t in tried} == {0.0, 0.8}
    assert sum(not slow for _, slow, _ in tried) == sum(slow for _, slow, _ in tried), "none is dropped at once"
    speeds = {one["options"]["draft_tokens"]: one["tokens_per_second"] for one in found["trials"]}
    assert speeds[1] == pytest.approx(10 / math.sqrt(300), abs=1e-3)


def test_a_kept_search_is_not_made_again(found: Results, tiny: Pair, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (kept,) = (found.path.parent / "kept").iterdir()
    values = json.loads(kept.read_text())
    values["best"] = [{**one, "options": next(settings_of(one["method"]))} for one in values["best"]]
    (tmp_path / "kept" / kept.name).write_text(json.dumps(values))
    chosen = plan(TINY, items)
    assert [item.id for item in chosen.tuning] == ["3"]
    done = run(tiny, tmp_path / "results.jsonl", dataclasses.replace(SMALL, tuning_prompts=1, states=("cold", "warm")))
    assert done.tuning is not None
    assert done.tuning["kept"]
    assert done.options["lookahead, cold"]["0"]["window"] == 1
    other = run(tiny, tmp_path / "other.jsonl", dataclasses.replace(SMALL, new_tokens=4))
    assert other.tuning is None
    assert other.options["speculative"]["0"] == dataclasses.asdict(METHODS["speculative"]())


# --------------------------------------------------------------------------------------------------- prompts and names


def test_prompts_are_disjoint_and_their_order_is_the_seeds() -> None:
    one, other = plan(TINY, items), plan(dataclasses.replace(TINY, seed=8), items)
    assert sorted(f"{i.task}{i.id}" for i in one.measured) == ["one0", "one1", "two0", "two1"]
    assert {task: [i.id for i in warm] for task, warm in one.warm.items()} == {"one": ["2"], "two": ["2"]}
    assert plan(TINY, items).measured == one.measured
    assert [item.task for item in plan(dataclasses.replace(TINY, tuning_prompts=None), items).tuning] == ["one", "two"]
    assert [item.id for item in one.measured] == ["0", "0", "1", "1"], "as many of each task at any time"
    assert any(plan(dataclasses.replace(TINY, seed=n), items).measured != other.measured for n in range(9))
    with pytest.raises(InputError, match="has 5 prompts, and 5 measured, 1 to warm and 0 to tune with are 6"):
        plan(dataclasses.replace(TINY, prompts=5), items)
    with pytest.raises(InputError, match="must have names of their own; 'one' has one twice"):
        plan(dataclasses.replace(TINY, tasks=("one", "one")), items)
    with pytest.raises(InputError, match="there is a source for 'three', which is no task"):
        plan(dataclasses.replace(TINY, sources=(("three", "x"),)), items)


def test_long_prompts_lose_their_beginning() -> None:
    ids = list(range(100))
    assert cut(ids, dataclasses.replace(TINY, max_prompt_tokens=30), 512) == (ids[70:], 70)
    assert cut(ids, dataclasses.replace(TINY, max_prompt_tokens=None), 512) == (ids, 0)
    assert cut(ids, dataclasses.replace(TINY, max_prompt_tokens=None), 100) == (ids[42:], 42)
    with pytest.raises(InputError, match="10 new tokens leave no room for a prompt in 40 positions"):
        cut(ids, TINY, 40)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompts": 0}, "prompts must be a whole number of at least 1, not 0"),
        ({"states": ("hot",)}, "state must be one of cold, warm, shuffled, not 'hot'"),
        ({"shuffled_prompts": 0}, "shuffled_prompts must be a whole number of at least 1, not 0"),
        ({"warm_prompts": 0}, "warm_prompts must be a whole number of at least 1"),
        ({"temperatures": ()}, "needs a state of the memory, and temperatures"),
        ({"draft": "d"}, "draft 'd' needs a target"),
        ({"temperatures": (0.5, 0.5)}, "temperatures must differ, not 0.5, 0.5"),
        ({"ablation": True, "methods": ("speculative",)}, "the ablation is one of the method ouroboros"),
        ({"variants": ("wide",)}, "a variant must be NAME=METHOD"),
        ({"variants": ("a=ouroboros:tree_tokens",)}, "options must be OPTION=VALUE, not 'tree_tokens'"),
        ({"variants": ("a=ouroboros:trees=1",)}, "has no option 'trees'"),
        ({"variants": ("a=magic",)}, "method must be one of"),
        ({"variants": ("speculative=speculative",)}, "'speculative' is there twice"),
    ],
)
def test_settings_that_make_no_benchmark(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BenchSettings(**values)


def test_without_a_draft_model(tiny: Pair, tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, target="t", methods=("lookahead", "prompt_lookup"))
    found = run(tiny, tmp_path / "results.jsonl", settings)
    assert all(case.agreed is None for case in found.cases.values())
    assert "draft" not in found.profiles
    assert "| one | – | – | – | – | – |" in markdown(found)
    with pytest.raises(InputError, match="need a draft model"):
        run(tiny, tmp_path / "other.jsonl", dataclasses.replace(settings, methods=("speculative",)))


# -------------------------------------------------------------------------------------------------------------- figures


def test_agreement_is_that_of_the_draws(tiny: Pair) -> None:
    params = SamplingParams(12, 0.8, seed=4)
    prompt = [1, 2, 3]
    tokens = load(tiny.target, method="autoregressive").generate(prompt, params).token_ids
    assert agreement(tiny.target, tiny.target, prompt, tokens, params) == 12
    agreed = agreement(tiny.target, tiny.drafts["similar"], prompt, tokens, params)
    own = load(tiny.drafts["similar"], method="autoregressive")
    alone = [
        own.generate([*prompt, *tokens[:n]], dataclasses.replace(params, max_new_tokens=1)).token_ids[0]
        for n in range(12)
    ]
    assert agreed == sum(one == other for one, other in zip(alone, tokens, strict=True)) < 12
    assert agreement(tiny.target, None, prompt, tokens, params) is None


def test_figures_of_known_runs(found: Results) -> None:
    """Times put in by hand: sums within a task, the geometric mean over tasks, looping tasks left out."""
    cases = {}
    for key, case in found.cases.items():
        factor = 2.0 if key[0] == "one" else 8.0
        runs = tuple(
            dataclasses.replace(
                one,
                prefill_seconds=1.0,
                draft_prefill_seconds=0.0,
                draft_seconds=0.5 / factor,
                decode_seconds=4.0 if one.label == "autoregressive" else 4.0 / factor,
                steps=((1, 0.5), (4, 1.0)),
            )
            for one in case.runs
        )
        cases[key] = dataclasses.replace(case, runs=runs, repeated_4grams=0.9 if key[0] == "two" else 0.1)
    figures = Figures(dataclasses.replace(found, cases=cases))
    assert figures.tasks == ["one", "two"]
    both = figures.speed("speculative", ("one", "two"), 0.0)
    assert both is not None
    assert both.value == pytest.approx(4.0)
    assert both.items == 4
    assert both.low == both.high == pytest.approx(4.0)
    assert figures.steady(0.0) == ("one",)
    alone = figures.speed("speculative", ("one",), 0.0, end_to_end=True)
    assert alone is not None
    assert alone.value == pytest.approx(5 / 3)
    totals = figures.totals("speculative", 0.0)
    assert (totals.ttft, totals.median, totals.p95) == (1.5, 0.25, 0.5)
    assert totals.tokens_per_target_forward is not None
    speed = 2 * 4.0 / (2.0 + 0.5)  # of each task's prompts
    assert totals.fraction_of_bound == pytest.approx(speed / totals.tokens_per_target_forward)
    mirror = figures.totals("mirror", 0.0)
    assert (mirror.ttft, mirror.tokens_per_target_forward, mirror.compared) == (None, None, 2)
    assert figures.totals("mirror", 0.8).compared <= 2
    text = markdown(dataclasses.replace(found, cases=cases))
    assert "| two ⚠ |" in text
    mine = ours(figures)[0]
    assert figures.draft_share(mine, "one", 0.0) == figures.draft_share(mine, None, 0.0) == 0.125
    bound = figures.bounds("one", 0.0)
    assert bound is not None
    assert f"| 2.00 | {2 / bound.chain:.0%} | 12% | {2 / bound.chain / 0.875:.0%} |" in text
    assert "absent: gone (it went away)" in text


def test_bounds_are_those_of_the_memory_while_a_prompt_ran() -> None:
    seconds = (0.020, 0.0205, 0.0215, 0.030, 0.110)
    target = CostProfile("", "", (1, 4, 8, 16, 64), (1,), (seconds,), ((0.0,) * 5,))
    draft = CostProfile("", "", (1,), (1,), ((0.002,),), ((0.0,),))

    def case(token: float, agreed: int | None = 9) -> Case:
        run = Run("autoregressive", "autoregressive", 0.0, 0.0, 10 * token, 10, 10)
        return Case("one", "0", 0, 0.0, 0, 5, 0, 0.0, agreed, tuple(range(10)), (run,))

    profiles = {"target": target, "draft": draft}
    slow, fast, both = (bounds(cases, profiles) for cases in ([case(0.020)], [case(0.013)], [case(0.020), case(0.013)]))
    assert slow is not None
    assert fast is not None
    assert both is not None
    assert slow.agreement == 0.9
    assert slow.chain == pytest.approx(chain_bound(0.9, lambda rows: target.cost(rows, 1)))
    assert slow.speculative == pytest.approx(speculative_estimate(0.9, lambda rows: target.cost(rows, 1), 0.002))
    assert fast.chain < 0.8 * slow.chain, "rows cost more beside a token where memory is fast"
    assert both.chain == pytest.approx(math.sqrt(slow.chain * fast.chain))
    assert bounds([case(0.020, None)], profiles) is None
    assert bounds([case(0.020)], {"target": target}) is None


def test_the_report_names_everything(found: Results) -> None:
    text = markdown(found)
    for heading in (
        "Summary",
        "By task, greedy",
        "Figures, temperature 0.8",
        "What is possible",
        "What a memory",
        "What each mech",
    ):
        assert f"\n## {heading}" in text
    for label in {one.label for one in contestants(TINY)} | {"mirror"}:
        assert f"| {label} |" in text
    assert "nan" not in text
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1


# --------------------------------------------------------------------------------------------------------- command line


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out, report, plots = tmp_path / "results.jsonl", tmp_path / "report.md", tmp_path / "plots"
    command = ["bench", "--task", "humaneval", "--task", "multi_turn", "--prompts", "1", "--new-tokens", "6"]
    command += ["--max-prompt-tokens", "40", "--tuning-prompts", "0", "--quality", "--temperature", "0"]
    command += ["--method", "ouroboros", "--method", "suffix_decoding"]
    assert cli.main([*command, "--out", str(out), "--report", str(report), "--plots", str(plots)]) == 0
    assert capsys.readouterr().out == ""
    results = read_results(out)
    assert [key[2] for key in results.cases if key[0] == "multi_turn"] == [0, 1]
    assert all(one.same for case in results.cases.values() for one in case.runs)
    assert all(one.right is False for one in results.cases["humaneval", "HumanEval/0", 0, 0.0].runs)
    assert sum(case.cut_tokens > 0 for case in results.cases.values()) >= 1
    drawn = {path.name for path in plots.iterdir()}
    kinds = ("speedup-greedy", "accepted-greedy", "speed-acceptance-greedy", "sources-greedy", "cost")
    assert drawn == {f"{kind}.svg" for kind in kinds}
    assert all(path.stat().st_size > 1000 for path in plots.iterdir())
    assert cli.main(["bench", "report", str(out)]) == 0
    assert capsys.readouterr().out == report.read_text()
    assert "## Quality, greedy" in report.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grow", "0.35b"], "--grow must be TARGET/DRAFT, such as 0.35b/62m, not '0.35b'"),
        (["--task", "magic"], "task must be one of"),
        (["--source", "mbpp"], "--source must be TASK=FILE, not 'mbpp'"),
        (["--seed", "1", "report", "x"], "bench report takes no seed"),
        (["report", "nowhere.jsonl"], "cannot read the results 'nowhere.jsonl'"),
        (["--report", "no/where.md"], "there is no directory 'no' for 'no/where.md'"),
        (["--revision", "x"], "--revision is not for bench"),
    ],
)
def test_what_the_command_refuses(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if "report" in arguments else ["--out", str(tmp_path / "x.jsonl")]
    assert cli.main(["bench", *arguments, *out]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ouroboros: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_conversations_are_asked_turn_by_turn() -> None:
    words = load(method="autoregressive", dtype="float32").tokenizer
    item = Item("chat", "1", ({"role": "user", "content": "Name a colour."},), ("And another?",))
    first = token_ids(item, words)
    second = token_ids(item, words, [[5, 6]])
    assert words is not None
    assert words.decode(second).startswith(words.decode(first))
    assert "And another?" in words.decode(second)
    assert (EMBEDDED / "target").is_dir()
