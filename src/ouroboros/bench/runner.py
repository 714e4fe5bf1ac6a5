"""Runs a benchmark: every contestant on every case, in turns. Prints nothing.

All contestants of a case go on from one prefill of the target, which is timed once; each has a draft model's cache of
its own. Their order rotates from case to case. A case is written when all its runs are done, so that an interrupted
benchmark goes on where it stopped; memories that depend on earlier prompts are then made again by the same requests.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from ouroboros.bench.audit import judge_output
from ouroboros.bench.cases import Plan
from ouroboros.bench.measuring import agreement, decoder_for, measure, measure_peer, params_for, prefill, prompt_of
from ouroboros.bench.pair import BenchPair
from ouroboros.bench.peers import Peer
from ouroboros.bench.quality import judge
from ouroboros.bench.records import Case, Results, Run
from ouroboros.bench.settings import PLAIN, BenchSettings, Contestant, contestants
from ouroboros.bench.tasks import Item
from ouroboros.config import MethodOptions, SamplingParams
from ouroboros.control.experience import Experience
from ouroboros.control.profile import PairProfile
from ouroboros.generate import Decoder, Session
from ouroboros.models.context import Context
from ouroboros.phrases.memory import Memory
from ouroboros.stats import repeated_4grams

__all__ = ["Options", "Runner", "Tell"]

Tell = Callable[[str, int, int, str], None]  # stage, done, of how many, what now
Options = Mapping[tuple[str, float], MethodOptions]  # (method, temperature) → the options that were found best
Output = tuple[int, ...]
_WARM_UP = 8  # new tokens


class Runner:
    """See the header.

    Args:
        tuned: options of methods by temperature, for contestants of which nothing is said. peers: already open.
        clock: of which costs are learned.
    """

    def __init__(
        self,
        settings: BenchSettings,
        pair: BenchPair,
        plan: Plan,
        tuned: Options,
        peers: Sequence[Peer],
        results: Results,
        tell: Tell,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._settings, self._pair, self._plan, self._results, self._tell = settings, pair, plan, results, tell
        self._contestants = contestants(settings)
        self._peers = list(peers)
        self._memories = _Memories(settings, pair, plan, self._decoder)
        self._places: dict[tuple[str, str], int] = {}  # of each item among its task's
        for item in plan.measured:
            self._places[item.task, item.id] = sum(task == item.task for task, _ in self._places)
        self._turn = 0
        profiles = results.profiles
        costs = PairProfile(profiles["target"], profiles["draft"]) if "draft" in profiles else None
        self._decoders = {}
        for one in self._contestants:
            for t in settings.temperatures:
                options = one.options or tuned.get((one.method, t), one.options)
                self._decoders[one.label, t] = decoder_for(pair, one.method, options, costs=costs, clock=clock)

    def run(self) -> None:
        """Measures what is missing in the results."""
        temperatures = self._settings.temperatures
        options = {
            one.label: {f"{t:g}": asdict(self._decoder(one, t).options) for t in temperatures}
            for one in self._contestants
        }
        if options != self._results.options:
            self._results.add_options(options)
        cases = sum(1 + len(item.turns) for item in self._plan.measured) * len(temperatures)
        done = 0
        self._warm_up()
        for item in self._plan.measured:
            for temperature in temperatures:
                answers: list[Output] = []
                for turn in range(1 + len(item.turns)):
                    name = f"{item.task} {item.id}" + (f", turn {turn + 1}" if turn else "")
                    self._tell("benchmark", done, cases, name)
                    answers.append(self._case(item, turn, temperature, answers))
                    done += 1
                    self._tell("benchmark", done, cases, name)

    def _decoder(self, one: Contestant, temperature: float) -> Decoder:
        return self._decoders[one.label, temperature]

    def _warm_up(self) -> None:
        """Nobody's first forward is measured."""
        ids = prompt_of(self._plan.measured[0], self._settings, self._pair)[0][-64:]
        for (_, temperature), decoder in self._decoders.items():
            decoder.generate(ids, SamplingParams(_WARM_UP, temperature, seed=0, ignore_eos=True))
        for peer in self._peers:
            self._peer(peer, ids, SamplingParams(_WARM_UP, seed=0, ignore_eos=True))

    def _case(self, item: Item, turn: int, temperature: float, answers: Sequence[Output]) -> Output:
        """Measures a case, if that is not done. Returns what plain decoding wrote."""
        ids, cut_tokens = prompt_of(item, self._settings, self._pair, answers)
        params = params_for(item, self._settings, temperature)
        context = Context(self._pair.target)
        prefill_seconds = prefill(context, ids)
        place = self._places[item.task, item.id]
        own = [one for one in self._contestants if self._settings.includes(one, item.task, place)]
        peers = self._peers if self._settings.includes(None, item.task, place) else ()
        order: list[Contestant | Peer] = [*own, *peers]
        first = self._turn % len(order)
        self._turn += 1

        def run(one: Contestant) -> tuple[Run, Output]:
            memory = self._memories.at(one, item.task, temperature)
            session = memory.session(self._decoder(one, temperature), temperature, context)
            return measure(one.label, session, ids, params, prefill_seconds)

        known = self._results.cases.get((item.task, item.id, turn, temperature))
        if known is not None:
            for one in own:
                if one.state == "shuffled":  # its memory must meet all prompts
                    run(one)
            return known.token_ids
        found: list[tuple[Run, Output]] = []
        for each in order[first:] + order[:first]:
            if isinstance(each, Contestant):
                found.append(run(each))
            else:
                found += self._peer(each, ids, params)
        plain = next(output for one, output in found if one.label == PLAIN)
        assert params.seed is not None
        case = Case(
            task=item.task,
            item=item.id,
            turn=turn,
            temperature=temperature,
            seed=params.seed,
            prompt_tokens=len(ids),
            cut_tokens=cut_tokens,
            repeated_4grams=repeated_4grams(plain),
            agreed=agreement(self._pair.target, self._pair.draft, ids, plain, params),
            token_ids=plain,
            runs=tuple(self._compared(one, output, plain, ids, params) for one, output in found),
        )
        if self._settings.quality and turn == 0:
            case = self._judged(case, item)
        self._results.add(case)
        return plain

    def _peer(self, peer: Peer, ids: Sequence[int], params: SamplingParams) -> list[tuple[Run, Output]]:
        """Nothing, and no more of it, where the peer fails."""
        try:
            return [measure_peer(peer, ids, params)]
        except Exception as error:  # other programs raise what they like
            self._peers = [other for other in self._peers if other is not peer]
            self._results.add_absent(peer.name, " ".join(f"it failed: {error}".split())[:200])
            return []

    def _compared(self, run: Run, tokens: Output, plain: Output, ids: Sequence[int], params: SamplingParams) -> Run:
        """The run with what its tokens are beside plain decoding's. A peer that samples draws other ones."""
        if tokens == plain:
            return replace(run, same=True)
        if run.label in self._settings.peers:
            return replace(run, same=False if params.greedy else None, token_ids=tokens)
        found = judge_output(self._pair.target, params, ids, plain, tokens).divergence
        assert found is not None
        told = {"index": found.index, "verdict": found.verdict, "margin": found.margin, "tolerance": found.tolerance}
        return replace(run, same=False, token_ids=tokens, divergence=told)

    def _judged(self, case: Case, item: Item) -> Case:
        """The case with whether its answers are right; equal answers are judged once."""
        assert self._pair.tokenizer is not None, "prompts were texts"
        known: dict[Output, bool | None] = {}
        for output in {case.token_ids, *(run.token_ids for run in case.runs if run.token_ids is not None)}:
            found = judge(item, self._pair.tokenizer.decode(output))
            known[output] = None if found is None else found.right
        runs = (replace(run, right=known[run.token_ids or case.token_ids]) for run in case.runs)
        return replace(case, runs=tuple(runs))


@dataclass(slots=True)
class _Memory:
    """What requests leave to later ones: phrases and the like, and what the controller has learned."""

    text: Memory = field(default_factory=Memory)
    experience: Experience = field(default_factory=Experience)

    def session(self, decoder: Decoder, temperature: float, context: Context) -> Session:
        decoder.control.experience[temperature] = self.experience
        return Session(decoder, self.text, context)


class _Memories:
    """What contestants remember when a case begins."""

    def __init__(
        self, settings: BenchSettings, pair: BenchPair, plan: Plan, decoder: Callable[[Contestant, float], Decoder]
    ) -> None:
        self._settings, self._pair, self._plan, self._decoder = settings, pair, plan, decoder
        self._shuffled: dict[tuple[str, float], _Memory] = {}
        self._warm: dict[tuple[str, str, float], bytes] = {}  # pickled: each case gets one of its own
        self._last: tuple[Sequence[int], Context] | None = None

    def at(self, one: Contestant, task: str, temperature: float) -> _Memory:
        if one.state == "shuffled":
            return self._shuffled.setdefault((one.label, temperature), _Memory())
        if one.state != "warm":
            return _Memory()
        key = one.label, task, temperature
        if key not in self._warm:
            self._warm[key] = pickle.dumps(self._fill(one, task, temperature))
        found: _Memory = pickle.loads(self._warm[key])
        return found

    def _fill(self, one: Contestant, task: str, temperature: float) -> _Memory:
        memory = _Memory()
        for item in self._plan.warm[task]:
            ids = prompt_of(item, self._settings, self._pair)[0]
            if self._last is None or self._last[0] != ids:  # the other contestants need the same prompt next
                self._last = ids, Context(self._pair.target)
            session = memory.session(self._decoder(one, temperature), temperature, self._last[1])
            session.generate(ids, params_for(item, self._settings, temperature))
        return memory
