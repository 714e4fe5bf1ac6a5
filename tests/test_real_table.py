"""The figures, tables, raw files and prompts of benchmarks/real_pair.py, on small made-up results."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.real_figures import (
    best_rival,
    decoding,
    end_to_end,
    groups,
    mean,
    over_own_best,
    seconds,
    speed_ups,
)
from benchmarks.real_prompts import SETS, load_prompts
from benchmarks.real_results import PLAIN, SUBJECT, Case, Raw, Run, read_raw, write_raw
from benchmarks.real_table import tables
from ouroboros.errors import InputError

SPECULATIVE, SUFFIX = "speculative-4", "suffix_decoding"
LABELS = [PLAIN, SPECULATIVE, SUFFIX, SUBJECT]


def run(label: str, decode: float, draft: float = 0.0, wall: float = 1.0, tokens: int = 10, **others: object) -> Run:
    counts = {"target_forwards": 5, "draft_forwards": 3, "draft_tokens": 9, "finish_reason": "stop"}
    fields = {"repeat": 0, "began": 0.0, "prefill_seconds": 0.1, "draft_seconds": 0.0, **counts, **others}
    seconds = {"wall_seconds": wall, "draft_prefill_seconds": draft, "decode_seconds": decode}
    return Run(label=label, tokens=tokens, **seconds, **fields)  # type: ignore[arg-type]


def case(prompt: str, temperature: float, *runs: Run) -> Case:
    return Case(prompt, temperature, 1000, 0, 20, 0.5, tuple(range(10)), runs)


def results(*cases: Case, scenario: str = "quiet", load: float = 2.0) -> Raw:
    names = {"target": "big", "draft": "small", "dtype": "bfloat16", "engine": "auto", "new_tokens": 10}
    settings = {**names, "scenario": scenario, "prompts": "reporting", "prompts_digest": "0", "methods": LABELS}
    environment = {"machine": "a machine", "commit": "abc", "versions": {"torch": "2"}}
    return Raw(settings, environment, [{"load_seconds": load, "disturbances": []}], list(cases))


FIRST = case("code-1", 0.0, run(PLAIN, 0.8), run(SPECULATIVE, 0.3, 0.1), run(SUFFIX, 0.2), run(SUBJECT, 0.15, 0.05))
SECOND = case("text-1", 0.0, run(PLAIN, 0.8), run(SPECULATIVE, 0.2, 0.0), run(SUFFIX, 0.8), run(SUBJECT, 0.05, 0.05))


def test_decoding_counts_the_draft_models_prefill_and_end_to_end_the_whole_request() -> None:
    one = run(SUBJECT, 0.15, 0.05, wall=0.7)
    assert decoding(one) == pytest.approx(0.02)
    assert end_to_end(one) == pytest.approx(0.07)


def test_speed_ups_are_of_a_token_where_texts_differ_in_length() -> None:
    short = case("code-1", 0.0, run(PLAIN, 0.8), run(SUBJECT, 0.2, tokens=5))
    assert [point.value for point in speed_ups([short], SUBJECT, PLAIN, decoding)] == [pytest.approx(2.0)]


def test_repeats_enter_with_their_median() -> None:
    repeated = case("code-1", 0.0, *(run(SUBJECT, value) for value in (0.1, 0.9, 0.2)))
    assert seconds(repeated, SUBJECT, decoding) == pytest.approx(0.02)
    assert seconds(repeated, PLAIN, decoding) is None


def test_means_are_geometric_over_prompts_and_know_their_least() -> None:
    found = mean(speed_ups([FIRST, SECOND], SUBJECT, PLAIN, decoding))
    assert found is not None
    assert found.value == pytest.approx(math.sqrt(4 * 8))
    assert found.least.prompt == "code-1"
    assert found.least.value == pytest.approx(4.0)
    assert [found.low, found.high] == pytest.approx([4.0, 8.0])  # one prompt drawn twice
    assert mean([]) is None


def test_a_prompt_with_two_temperatures_counts_once() -> None:
    warm = case("code-1", 0.8, run(PLAIN, 0.8), run(SUBJECT, 0.8))
    found = mean(speed_ups([FIRST, warm, SECOND], SUBJECT, PLAIN, decoding))
    assert found is not None
    assert found.value == pytest.approx(math.sqrt(math.sqrt(4 * 1) * 8))
    assert found.prompts == 2
    assert found.least.temperature == 0.8


def test_rivals_are_chosen_over_all_prompts_or_for_each() -> None:
    rivals = [PLAIN, SPECULATIVE, SUFFIX]  # 2 and 4 times plain decoding, and 4 and 1
    assert best_rival([FIRST, SECOND], rivals, decoding) == SPECULATIVE
    over = [point.value for point in speed_ups([FIRST, SECOND], SUBJECT, SPECULATIVE, decoding)]
    assert over == [pytest.approx(2.0), pytest.approx(2.0)]
    own = [point.value for point in over_own_best([FIRST, SECOND], SUBJECT, rivals, decoding)]
    assert own == [pytest.approx(1.0), pytest.approx(2.0)]
    assert best_rival([FIRST], ["lookahead"], decoding) is None


def test_files_of_the_same_scenario_are_repeats_of_each_other() -> None:
    again = case("code-1", 0.0, run(PLAIN, 1.6), run(SUBJECT, 0.2))
    quiet, busy = groups([results(FIRST), results(again), results(SECOND, scenario="busy-load")])
    assert [len(one.runs) for one in quiet.cases] == [6]
    assert seconds(quiet.cases[0], PLAIN, decoding) == pytest.approx(0.12)
    assert busy.cases == (SECOND,)


def test_the_tables_name_rivals_differences_and_disturbed_runs() -> None:
    other = run(SUFFIX, 0.4, differs_at=7)
    hit = case("text-2", 0.0, run(PLAIN, 0.8), other, run(SUBJECT, 0.4, disturbed=True))
    text = tables([results(FIRST, SECOND, hit)])
    assert (
        "| ouroboros over the best single rival (speculative-4; end to end autoregressive) | 2.00 (2.00–2.00) |" in text
    )
    assert "| ouroboros over each prompt's own best rival |" in text
    assert "Load: 2.0 s." in text
    assert (
        "Of 11 runs 1 wrote other tokens than plain decoding: suffix_decoding on text-2, greedy, from token 7." in text
    )
    assert "Without the cases, 1, that a busy program disturbed:" in text
    assert "| text-2 | 20 | 10 | 80.0 | – | 2.00 | 2.00* | 1.00 (suffix_decoding) |" in text
    assert "All 8 runs wrote plain decoding's tokens." in tables([results(FIRST, SECOND)])


def test_a_raw_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    steps = run(SUBJECT, 0.1, step_tokens=(3, 7), step_ms=(20.5, 40.0), rows=(4, 9), draft_rows=((1, 1), ()))
    written = results(FIRST, case("text-1", 0.8, steps, run(SUFFIX, 0.2, differs_at=0, disturbed=True)))
    write_raw(written, tmp_path / "new" / "raw.json")
    assert read_raw(tmp_path / "new" / "raw.json") == written
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="holds no results"):
        read_raw(tmp_path / "other.json")


def test_the_two_sets_of_prompts_have_the_same_kinds_and_share_no_prompt() -> None:
    tuning, reporting = load_prompts("tuning"), load_prompts("reporting")
    assert [one.name for one in tuning] == [one.name for one in reporting] == list(SETS["tuning"])
    assert not {str(one.prompt) for one in tuning} & {str(one.prompt) for one in reporting}
    assert reporting[0].ask(True) == [{"role": "user", "content": reporting[0].prompt}]
    assert reporting[0].ask(False) == reporting[0].prompt
    assert len(load_prompts("tuning", 2)) == 2
