"""What each rank runs in test_spread.py: a target in two processes, asked as the first argument says.

python spread_worker.py TASK DIRECTORY        with torch.distributed's variables in the environment
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from transformers.distributed.configuration_utils import DistributedConfig

import ouroboros
from ouroboros.errors import OuroborosError

METHODS = (
    "autoregressive", "speculative", "lookahead", "prompt_lookup", "suffix_decoding", "token_recycling", "ouroboros",
)  # fmt: skip
NEEDS_DRAFT = ("speculative", "ouroboros")
PROMPT = [5, 9, 2, 33, 5, 9, 2, 17, 40, 5, 9]


def written(target: Any, draft: Any, method: str) -> dict[str, Any]:
    """Texts of one method, alone and together, greedy and drawn."""
    with ouroboros.load(target, draft if method in NEEDS_DRAFT else None, method=method) as decoder:
        settings: tuple[dict[str, Any], ...] = ({"temperature": 0.0}, {"temperature": 1.0, "seed": 7})
        found: dict[str, Any] = {}
        for number, one in enumerate(settings):
            found[f"alone-{number}"] = list(decoder.generate(PROMPT, max_new_tokens=24, **one).token_ids)
        both = decoder.generate([PROMPT, PROMPT[3:]], max_new_tokens=16, **settings[1])
        found["together"] = [list(result.token_ids) for result in both]
        session = decoder.session()
        for turn in range(2):  # the second begins as the first
            prompt = [*PROMPT, *(found["turn-0"][:9] if turn else [])]
            found[f"turn-{turn}"] = list(session.generate(prompt, max_new_tokens=12, **settings[0]).token_ids)
        with decoder.stream(PROMPT, max_new_tokens=24, temperature=0.0) as stream:
            found["closed"] = list(next(stream).token_ids)
        found["guided"] = list(decoder.generate(PROMPT, max_new_tokens=8, guidance_scale=1.5, **settings[1]).token_ids)
        return found


def unseeded(target: Any, draft: Any) -> list[int]:
    with ouroboros.load(target, draft) as decoder:
        return list(decoder.generate(PROMPT, max_new_tokens=24, temperature=1.0).token_ids)


def lost(target: Any, draft: Any, rank: int, victim: int, how: int) -> str:
    """One rank ends, or hangs, in the middle of a text. Returns what the other is told, and after how long."""
    decoder, count = ouroboros.load(target, draft), 0
    began = time.monotonic()
    try:
        for _ in range(100):
            for _ in decoder.stream(PROMPT, max_new_tokens=200, temperature=1.0, seed=1):
                count += 1
                if count == 3:
                    began = time.monotonic()
                    if rank == victim:
                        os.kill(os.getpid(), how)
    except OuroborosError as error:
        return json.dumps([str(error), time.monotonic() - began])
    return ""


def two(target: Any, draft: Any) -> None:
    """A stream is begun before the last one has ended."""
    decoder = ouroboros.load(target, draft)
    with decoder.stream(PROMPT, max_new_tokens=40) as first:
        next(first)
        next(decoder.stream(PROMPT, max_new_tokens=2))


def refused(target: Any, draft: Any) -> list[str]:
    told = []
    for call in (
        lambda: ouroboros.load(target, draft, backend="native"),
        lambda: ouroboros.load(draft, target),
        lambda: ouroboros.Engine(ouroboros.load(target, draft)),
        lambda: target.generate(torch.tensor([PROMPT]), custom_generate=ouroboros.custom_generate, max_new_tokens=2),
        lambda: ouroboros.load(target, draft).generate([PROMPT, [99999]], max_new_tokens=2),
        lambda: two(target, draft),
    ):
        try:
            call()
        except OuroborosError as error:
            told.append(str(error))
    return told


def main(task: str, place: Path) -> None:
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    spread = DistributedConfig(tp_size=2)
    read = transformers.AutoModelForCausalLM.from_pretrained
    target = read(place / "target", dtype=torch.float32, distributed_config=spread)
    draft = read(place / "draft", dtype=torch.float32)
    found: Any
    if task == "write":
        found = {method: written(target, draft, method) for method in METHODS}
        found |= {"unseeded": unseeded(target, draft), "refused": refused(target, draft)}
    else:
        victim, how = int(task[-1]), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[task[:4]]
        found = lost(target, draft, rank, victim, how)
    (place / f"{task}-{rank}.json").write_text(json.dumps(found))
    if task == "write":
        dist.destroy_process_group()
    os._exit(0)  # what is left of a lost group would wait for it


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
