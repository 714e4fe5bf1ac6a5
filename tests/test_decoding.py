"""The flow and its driver: who reads the clock, what is told to whom, and what happens when a request is given up."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import ouroboros
from ouroboros.config import SamplingParams, SpeculativeOptions
from ouroboros.decoding.loop import Begun, Event, Step, decode
from ouroboros.decoding.request import Request, start
from ouroboros.decoding.run import run
from ouroboros.drafting.autoregressive import AutoregressiveDrafter
from ouroboros.flow import Answer, Flow, Meter, Need, Prefill, Score, metered
from ouroboros.models.base import CausalModel, ScoreRequest
from ouroboros.models.context import Context
from ouroboros.phrases.memory import Memory
from ouroboros.sampling import Sampler
from ouroboros.tree import TokenTree
from tests.pairs import Pair

SOURCE = Path(ouroboros.__file__).parent
PROMPT = [3, 1, 4, 1, 5]


def test_no_file_below_the_driver_reads_a_clock() -> None:
    """But for what measures machines and profiles, before anything is decoded."""
    rooms = [*(SOURCE / "drafting").iterdir(), *(SOURCE / "control").iterdir(), *(SOURCE / "phrases").iterdir()]
    rooms += [SOURCE / name for name in ("flow.py", "verify.py", "decoding/loop.py", "decoding/request.py")]
    files = [file for file in rooms if file.suffix == ".py" and file.name not in ("machine.py", "profile.py")]
    assert len(files) > 30
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {"time", "datetime"} & {*names, *module}, file


class Plain(AutoregressiveDrafter):
    """Counts how it ends."""

    def __init__(self) -> None:
        self.stopped: list[list[int]] = []

    def stop(self, sequence: Sequence[int]) -> None:
        self.stopped.append(list(sequence))


def flow(pair: Pair, drafter: Plain, new: int = 6) -> Flow[None]:
    params = SamplingParams(max_new_tokens=new)
    return decode(Context(pair.target), drafter, Sampler(params, 0, 40, len(PROMPT)), PROMPT, new)


def test_the_driver_times_forwards_and_what_is_around_them(tiny: Pair) -> None:
    ticks = itertools.count()
    told: list[tuple[CausalModel, int, int, float]] = []
    events: list[Event] = list(run(flow(tiny, Plain()), lambda: float(next(ticks)), lambda *one: told.append(one)))
    begun, *steps = events
    assert isinstance(begun, Begun)
    assert (begun.cached_tokens, len(steps)) == (0, 6)
    assert all(model is tiny.target for model, _, _, _ in told)
    assert [rows for _, rows, _, _ in told] == [4, 1, 1, 1, 1, 1, 1]
    assert [context for _, _, context, _ in told] == [4, 4, 5, 6, 7, 8, 9]
    assert all(seconds == 1.0 for _, _, _, seconds in told)
    # two readings around a forward, one behind it, one at the step's end
    assert all(isinstance(step, Step) and step.seconds == 4.0 for step in steps)


def test_what_the_consumer_does_is_not_the_step_s(tiny: Pair) -> None:
    now = [0.0]
    for event in run(flow(tiny, Plain()), lambda: now[0]):
        assert event.seconds == 0.0
        now[0] += 100.0


@pytest.mark.parametrize("how", ["ends", "is closed", "fails"])
def test_a_drafter_is_told_once_that_the_request_is_over(tiny: Pair, how: str) -> None:
    drafter = Plain()
    events = run(flow(tiny, drafter))
    if how == "ends":
        tokens = [token for event in events if isinstance(event, Step) for token in event.tokens]
        assert drafter.stopped == [[*PROMPT, *tokens]]
        return
    next(events)
    step = next(events)
    assert isinstance(step, Step)
    if how == "is closed":
        events.close()
        assert drafter.stopped == [[*PROMPT, *step.tokens]]
        return

    def fail(sequence: Sequence[int], room: int) -> Any:
        raise RuntimeError("a drafter that fails")

    drafter.propose = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        next(events)
    assert drafter.stopped == [[*PROMPT, *step.tokens]]


def test_a_flow_can_be_answered_by_anyone(tiny: Pair) -> None:
    """Two requests in turns, each need answered in one forward of all: as a scheduler would."""
    requests = []
    for prompt in (PROMPT, [2, 7, 1, 8]):
        sampler = Sampler(SamplingParams(max_new_tokens=12), 0, 40, len(prompt))
        requests.append(Request(prompt, sampler, frozenset(), Memory()))

    def new_flows() -> list[Flow[None]]:
        draft = tiny.drafts["similar"]
        return [start(one, SpeculativeOptions(), Context(tiny.target), Context(draft), None) for one in requests]

    def tokens_of(events: Any) -> list[int]:
        return [token for event in events if isinstance(event, Step) for token in event.tokens]

    alone = [tokens_of(run(one)) for one in new_flows()]
    flows: dict[int, Flow[None]] = dict(enumerate(new_flows()))
    answers: dict[int, Answer | None] = dict.fromkeys(flows)
    together: list[list[int]] = [[], []]
    shared = 0
    while flows:
        needs: dict[int, Need] = {}
        for number, one in list(flows.items()):
            try:
                need = one.send(answers[number])
                while isinstance(need, Begun | Step):
                    together[number] += need.tokens if isinstance(need, Step) else ()
                    need = one.send(None)
                needs[number] = need
            except StopIteration:
                del flows[number]
        for model in {need.model for need in needs.values()}:
            scores = [(n, need) for n, need in needs.items() if isinstance(need, Score) and need.model is model]
            rows = sum(need.rows for _, need in scores)
            found = model.score([need.request for _, need in scores]) if scores else []
            shared += len(scores) > 1
            for (number, _), logits in zip(scores, found, strict=True):
                answers[number] = Answer(logits, 0.02, rows)
        for number, need in needs.items():
            if isinstance(need, Prefill):
                need.model.prefill(need.slot, need.tokens)
                answers[number] = Answer()
    assert together == alone
    assert shared > 5


def test_a_meter_counts_what_passes_by(tiny: Pair) -> None:
    context = Context(tiny.target)

    def asking() -> Flow[str]:
        yield Prefill(context.model, context.slot, [1, 2])
        answer = yield Score(context.model, ScoreRequest(context.slot, TokenTree(3)))
        return f"{answer.rows} rows"

    meter = Meter()
    outer = metered(asking(), meter)
    next(outer)
    assert isinstance(outer.send(Answer(seconds=1.0, around=0.25)), Score)
    with pytest.raises(StopIteration) as stop:
        outer.send(Answer(rows=7, seconds=2.0, around=0.5))
    assert stop.value.value == "7 rows"
    assert (meter.forwards, meter.seconds) == (1, 3.75)
