"""The proposer for vLLM: its contract with a small stand-in for the engine, and with vLLM itself where that is."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ouroboros.errors import InputError, PoolFileError
from ouroboros.integrations.chains import Spending
from ouroboros.integrations.vllm import OuroborosProposer, ProposerOptions
from ouroboros.pairing import EMBEDDED
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.storage import load_pool, save_pool
from ouroboros.text import Tokenizer
from ouroboros.tree import Origin

VOCAB, POSITIONS, MOST = 200, 256, 6


def config(options: object = None, rank: int = 0, eos: int | list[int] | None = None) -> Any:
    """What the proposer reads of vLLM's configuration."""
    return SimpleNamespace(
        additional_config={} if options is None else {"ouroboros": options},
        speculative_config=SimpleNamespace(num_speculative_tokens=MOST),
        model_config=SimpleNamespace(
            max_model_len=POSITIONS,
            hf_text_config=SimpleNamespace(eos_token_id=eos),
            tokenizer=str(EMBEDDED / "target"),
            get_vocab_size=lambda: 100_000,
        ),
        parallel_config=SimpleNamespace(rank=rank, data_parallel_rank=0),
    )


class Engine:
    """Verifies chains as vLLM does: a batch of rows, each request's text known in advance. ``row``: seconds that a row
    adds to a forward of one second."""

    def __init__(self, proposer: OuroborosProposer, row: float = 0.01) -> None:
        self.proposer, self.row = proposer, row
        self.ids = np.zeros((8, POSITIONS), dtype=np.int32)
        self.lengths = np.zeros(8, dtype=np.int64)
        self.texts: list[Sequence[int]] = []
        self.chains: list[list[int]] = []
        self.now = self.steps = self.accepted = self.proposed = 0.0
        proposer._clock = lambda: self.now

    def begin(self, prompt: int, text: Sequence[int]) -> None:
        row = len(self.texts)
        self.texts.append(text)
        self.chains.append([])
        self.ids[row, :prompt] = text[:prompt]
        self.lengths[row] = prompt

    def step(self, reading: Sequence[int] = ()) -> None:
        new: list[list[int]] = []
        self.now += 1 + self.row * sum(1 + len(chain) for chain in self.chains)
        for row, (text, chain) in enumerate(zip(self.texts, self.chains, strict=True)):
            if row in reading:
                new.append([])
                continue
            start, count = int(self.lengths[row]), 0
            self.proposed += len(chain)
            while count < len(chain) and start + count < len(text) - 1 and chain[count] == text[start + count]:
                count += 1
            self.accepted += count
            tokens = list(text[start : start + count + 1])
            self.ids[row, start : start + len(tokens)] = tokens
            self.lengths[row] += len(tokens)
            new.append(tokens)
        self.chains = self.proposer.propose(new, self.lengths, self.ids, slot_mappings=None)
        self.steps += 1

    def end(self, row: int) -> None:
        """vLLM moves the last row into the place of one that ended."""
        last = len(self.texts) - 1
        self.ids[row], self.lengths[row] = self.ids[last], self.lengths[last]
        self.texts[row], self.chains[row] = self.texts[last], self.chains[last]
        self.texts.pop()
        self.chains.pop()

    def run(self) -> None:
        """Until every text is written."""
        while self.texts:
            self.step()
            for row in reversed(range(len(self.texts))):
                if self.lengths[row] >= len(self.texts[row]):
                    self.end(row)


def words(seed: int, size: int = 120) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=size)


def test_what_was_written_before_is_proposed() -> None:
    proposer = OuroborosProposer(config())
    proposer.load_model("any", model="thing")
    steps = []
    for _ in range(2):
        engine = Engine(proposer)
        engine.begin(20, words(0))
        engine.run()
        steps.append(engine.steps)
    assert steps[0] >= 95
    assert steps[1] < 25


def test_a_copy_of_the_prompt_is_proposed_and_ends_with_the_text() -> None:
    engine = Engine(OuroborosProposer(config({"share": False})))
    engine.begin(62, [*words(1, 60), *words(1, 60)])
    engine.run()
    assert engine.steps < 20
    assert engine.accepted > 0.8 * engine.proposed


def test_nothing_is_proposed_after_the_end_or_beyond_the_context() -> None:
    text = words(2, 100)
    proposer = OuroborosProposer(config(eos=[text[60], 199]))
    first = Engine(proposer)
    first.begin(10, text)
    first.run()
    again = Engine(proposer)
    again.begin(10, text)
    while again.lengths[0] < 90:
        again.step()
        chain = again.chains[0]
        assert text[60] not in chain[:-1]
    long = Engine(OuroborosProposer(config()))
    long.begin(POSITIONS - 4, words(3, 50) * 6)
    long.texts[0] = long.texts[0][:POSITIONS]
    while long.lengths[0] < POSITIONS:
        long.step()
        assert long.lengths[0] + len(long.chains[0]) < POSITIONS or not long.chains[0]


def test_rows_that_pay_too_little_are_not_proposed() -> None:
    """Where a forward costs what its rows cost, little is; where rows are free, all that is likely."""
    dear, cheap = (Engine(OuroborosProposer(config()), row=row) for row in (10.0, 0.001))
    for engine in (dear, cheap):
        source = words(1, 120)
        chance = random.Random(2)  # every third token is another than in the copy
        engine.begin(120, [*source, *(one if chance.random() < 0.7 else VOCAB + 1 for one in source)])
        engine.run()
    assert dear.proposed < 0.6 * cheap.proposed
    assert dear.accepted / dear.proposed > 1.2 * cheap.accepted / cheap.proposed
    assert cheap.steps < dear.steps


def test_spending_weighs_all_chains_together() -> None:
    spending = Spending()
    assert spending.lengths([[0.9, 0.8]]) == [0]  # nothing was measured
    for rows in (1, 2, 4, 8, 16) * 12:
        spending.observe(rows, 1 + 0.1 * rows)
    assert spending.lengths([[0.9, 0.8, 0.01], [0.9, 0.02], []]) == [2, 1, 0]
    assert sum(spending.lengths([[0.05] * 8] * 3)) == 0


def test_requests_are_known_again_when_rows_change() -> None:
    proposer = OuroborosProposer(config())
    engine = Engine(proposer)
    texts = [words(seed, 80 + seed) for seed in range(5)]
    for text in texts:
        engine.begin(30, text)
    engine.step(reading=[1, 3])  # their prompts are longer than what a forward reads
    engine.step(reading=[3])
    chains = {tuple(seen.chain.text[:30]): seen.chain for seen in proposer._seen}
    assert len(chains) == 4
    engine.end(0)
    while len(engine.texts) > 1:
        engine.step()
        engine.end(0)
    engine.run()
    assert len(proposer._seen) <= 5  # nobody was taken for somebody new
    for seen in proposer._seen:
        assert any(list(text[: len(seen.chain.text)]) == seen.chain.text for text in texts)


def test_steps_without_a_call_are_caught_up() -> None:
    proposer = OuroborosProposer(config())
    engine = Engine(proposer)
    text = words(4, 100)
    engine.begin(20, text)
    engine.step()
    engine.ids[0, 21:24], engine.lengths[0], engine.chains = text[21:24], 24, [[]]
    engine.step()
    assert [seen.chain.text for seen in proposer._seen] == [text[:25]]


def test_two_requests_that_are_alike_stay_apart() -> None:
    proposer = OuroborosProposer(config())
    engine = Engine(proposer)
    for _ in range(2):
        engine.begin(20, words(5, 60))
    engine.run()
    assert sorted(len(seen.chain.text) for seen in proposer._seen) == [60, 60]


def test_what_is_over_is_forgotten() -> None:
    proposer = OuroborosProposer(config())
    for seed in range(4):
        engine = Engine(proposer)
        engine.begin(20, words(10 + seed, 100))
        engine.run()
    assert len(proposer._seen) <= 2


def test_a_memory_is_saved_and_read(tmp_path: Path) -> None:
    file = tmp_path / "pool"
    proposer = OuroborosProposer(config({"memory": str(file)}))
    with pytest.raises(PoolFileError, match="in use"):
        OuroborosProposer(config({"memory": str(file)}))
    other = OuroborosProposer(config({"memory": str(file)}, rank=1))  # reads, and leaves saving to the first
    assert other._kept.lock is None
    engine = Engine(proposer)
    engine.begin(20, words(6))
    engine.run()
    proposer._kept.save()
    assert proposer._kept.lock is not None
    proposer._kept.lock.release()
    again = OuroborosProposer(config({"memory": str(file), "read_only": True}))
    warm = Engine(again)
    warm.begin(20, words(6))
    warm.run()
    assert warm.steps < 25


def test_predictions_of_a_decoder_are_proposed(tmp_path: Path) -> None:
    memory, bound = Memory(), Tokenizer.from_directory(EMBEDDED / "target")
    assert bound is not None
    text = words(8)
    for before, last, after in zip([None, *text], text, text[1:], strict=False):
        memory.predictions.learn(before, last, [after, VOCAB], [-0.01, -5.0])
    save_pool(memory, tmp_path / "pool", bound.fingerprint)
    engine = Engine(OuroborosProposer(config({"memory": str(tmp_path / "pool"), "read_only": True})))
    engine.begin(20, text)
    engine.run()
    assert engine.steps < 60


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pool": "x"}, r"unknown option 'pool' in additional_config\['ouroboros'\]; there are \['memory'"),
        ({"min_chance": 0}, "min_chance must be a number above 0, at most 1, not 0"),
        ({"share": 1}, "share must be true or false, not 1"),
        ({"max_keys": 3}, "max_keys must be a whole number of at least 1000, not 3"),
        ({"read_only": True}, "read_only needs memory"),
        ({"memory": 3}, "memory must be the path"),
        ({"memory": "/nowhere/at/all"}, "there is no directory '/nowhere/at'"),
        ([1], "must be a mapping of options"),
    ],
)
def test_bad_options_are_one_clear_line(options: object, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        OuroborosProposer(config(options))
    assert "\n" not in str(caught.value)
    assert ProposerOptions.of(None) == ProposerOptions()


def test_the_row_is_not_copied_at_each_call() -> None:
    """A call takes no longer for a long text than for a short one, but for the look at its end."""
    reads = []

    class Row:
        def __init__(self, ids: Any) -> None:
            self.ids = ids

        def __getitem__(self, part: slice) -> Any:
            reads.append(part.stop - (part.start or 0))
            return self.ids[part]

    class Rows:
        def __init__(self, ids: Any) -> None:
            self.ids = ids

        def __getitem__(self, row: int) -> Row:
            return Row(self.ids[row])

    proposer = OuroborosProposer(config())
    engine = Engine(proposer)
    whole = proposer.propose
    proposer.propose = lambda new, lengths, ids, **more: whole(new, lengths, Rows(ids))  # type: ignore[method-assign]
    engine.begin(150, words(9, 240))
    engine.run()
    assert max(reads) == 150
    assert max(reads[1:]) <= 32


SCRIPT = """
import json, os, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":  # the engine is spawned
    path, method, memory, texts = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
    settings = {}
    if method == "ours":
        settings["speculative_config"] = {"method": "custom_class", "num_speculative_tokens": 6,
            "model": "ouroboros.integrations.vllm.OuroborosProposer"}
        settings["additional_config"] = {"ouroboros": {"memory": memory, "by_cost": False}}
    llm = LLM(path, dtype="float32", max_model_len=256, enforce_eager=True, skip_tokenizer_init=True,
              disable_log_stats=False, **settings)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, detokenize=False)
    asked = [{"prompt_token_ids": text} for text in texts]
    found = [[list(o.outputs[0].token_ids) for o in llm.generate(asked, params, use_tqdm=False)] for _ in range(2)]
    counts = {m.name: m.value for m in llm.get_metrics() if "spec_decode" in m.name and hasattr(m, "value")}
    print("FOUND" + json.dumps([found, counts]))
"""


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_vllm_writes_the_same_tokens_with_it(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = transformers.LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(small).save_pretrained(tmp_path / "model")
    for file in (EMBEDDED / "target").glob("tokenizer*"):
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    texts = [random.Random(seed).choices(range(500), k=20 + 3 * seed) for seed in range(20)]
    texts = [text + text[:5] for text in texts]
    (tmp_path / "run.py").write_text(textwrap.dedent(SCRIPT))
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    found = {}
    for method in ("plain", "ours"):
        command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "model"), method, str(tmp_path / "pool")]
        done = subprocess.run(
            [*command, json.dumps(texts)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        line = next(one for one in done.stdout.splitlines() if one.startswith("FOUND"))
        found[method] = json.loads(line.removeprefix("FOUND"))
    assert found["ours"][0] == found["plain"][0]
    accepted = found["ours"][1]["vllm:spec_decode_num_accepted_tokens"]
    assert accepted > 0.8 * 20 * 40 / 2  # the second pass is known
    bound = Tokenizer.from_directory(tmp_path / "model")
    assert bound is not None
    memory = load_pool(tmp_path / "pool", bound.fingerprint, 512)  # the engine's process has saved it at its end
    assert any(phrase.origin is Origin.VERIFIED for _, phrase in memory.phrases.items())
