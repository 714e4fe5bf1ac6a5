"""Is accelerated decoding lossless here, on this model, dtype and device? Prints nothing.

Each method writes the same prompts with the same seed as plain decoding, and must write the same tokens. Where it does
not, the first divergence is judged by reference logits (a single row after a fresh prefill) and by the rounding that is
measured in the same run:

    identical   the tokens are equal
    near-tie    they part where rounding can explain both tokens (see nearness.py, rounding.py)
    defect      they part where it cannot, or one output ends where the other goes on

Tree rows whose logits differ by more than rounding are a defect too, even if every token was the same this time.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from ouroboros.bench.nearness import Choice, judge
from ouroboros.bench.rounding import Noise, Text, epsilon_of, last_logits, measure
from ouroboros.bench.verdicts import DEFECT, NEAR_TIE, AuditReport, Divergence, MethodAudit, PromptAudit
from ouroboros.config import METHODS, SamplingParams
from ouroboros.errors import InputError
from ouroboros.models.base import CausalModel

if TYPE_CHECKING:
    from ouroboros.generate import Decoder
    from ouroboros.prompts import Prompt

__all__ = ["AUDITED", "audit", "judge_output"]

_PLAIN = "autoregressive"
AUDITED = tuple(method for method in METHODS if method != _PLAIN)
_MEASURED = 4  # prompts on which rounding is measured at least, if there are as many
_MOST_MEASURED = 12  # and at most, where many diverge


def audit(
    load: Callable[[str], Decoder],
    prompts: Sequence[Prompt],
    params: SamplingParams,
    progress: Callable[[str], None] = lambda text: None,
    methods: Sequence[str] = AUDITED,
) -> AuditReport:
    """Compares methods with plain decoding.

    Args:
        load: a decoder for a method's name, all with the same models (best the same objects, which are then in memory
            once); each is closed. prompts: texts or token ids. params: without a seed one is drawn.
        progress: is told what comes next.

    Raises:
        InputError: no prompts, no methods, an unknown one, or plain decoding itself; a grammar; or what ``generate``
            does not allow.
    """
    if not prompts:
        raise InputError("an audit needs at least one prompt, not []")
    if not methods:
        raise InputError(f"an audit needs at least one method of {', '.join(AUDITED)}")
    for method in methods:
        if method not in AUDITED:
            raise InputError(f"method must be one of {', '.join(AUDITED)}, not {method!r}")
    if params.grammar is not None:
        raise InputError("an audit cannot judge draws that a grammar restricts; grammar must be None")
    if params.seed is None:
        params = dataclasses.replace(params, seed=secrets.randbits(63))
    progress(f"loading for {_PLAIN}")
    plain = load(_PLAIN)
    try:
        expected = _outputs(plain, prompts, params, progress)
        found = {}
        for method in methods:
            progress(f"loading for {method}")
            decoder = load(method)
            try:
                found[method] = _outputs(decoder, prompts, params, progress)
            finally:
                decoder.close()
            del decoder  # its models, if they are its own, before the next ones come
        model = plain.target
        splits = {
            method: [_split(*pair) for pair in zip(expected, outputs, strict=True)] for method, outputs in found.items()
        }
        noise = _noise(model, expected, splits, progress)
        progress("judging")
        audits = []
        for method, outputs in found.items():
            pairs = zip(expected, outputs, splits[method], strict=True)
            audits.append(
                MethodAudit(method, tuple(_compare(model, params, noise, n, *pair) for n, pair in enumerate(pairs, 1)))
            )
    finally:
        plain.close()
    info = model.info
    return AuditReport(info.backend, info.dtype, info.device, params, noise, tuple(audits))


def judge_output(
    model: CausalModel, params: SamplingParams, prompt: Sequence[int], plain: Sequence[int], other: Sequence[int]
) -> PromptAudit:
    """One output held against plain decoding's, both made with ``params``, whose seed is known."""
    expected, output = _Output(tuple(prompt), tuple(plain)), _Output(tuple(prompt), tuple(other))
    split = _split(expected, output)
    noise = _noise(model, [expected], {"": [split]}, lambda text: None)
    return _compare(model, params, noise, 1, expected, output, split)


@dataclass(frozen=True, slots=True)
class _Output:
    prompt: tuple[int, ...]
    new: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        return self.prompt + self.new


def _outputs(
    decoder: Decoder, prompts: Sequence[Prompt], params: SamplingParams, progress: Callable[[str], None]
) -> list[_Output]:
    outputs = []
    for number, prompt in enumerate(prompts, 1):
        progress(f"{decoder.method}, prompt {number} of {len(prompts)}")
        result = decoder.generate(prompt, params=params)
        outputs.append(_Output(tuple(result.prompt_token_ids), tuple(result.token_ids)))
    return outputs


def _split(plain: _Output, other: _Output) -> int | None:
    """Index of the first new token that differs."""
    assert plain.prompt == other.prompt, "the same prompt has become other tokens"
    pairs = zip_longest(plain.new, other.new)
    return next((index for index, (one, two) in enumerate(pairs) if one != two), None)


def _noise(
    model: CausalModel,
    expected: Sequence[_Output],
    splits: Mapping[str, Sequence[int | None]],
    progress: Callable[[str], None],
) -> Noise:
    """Measured behind each prompt, in the middle and at the end of its output, and where outputs part; on the prompts
    on which they part, filled up with others."""
    texts: list[tuple[bool, Text]] = []
    for number, output in enumerate(expected):
        first, last = len(output.prompt), len(output.all)
        parted = {split for of_method in splits.values() if (split := of_method[number]) is not None}
        contexts = {first, max(first, last - 3), *(max(1, first + split - 2) for split in parted)}
        if last - first > 16:
            contexts.add((first + last) // 2)
        texts.append((bool(parted), Text(output.all, tuple(sorted(contexts)))))
    texts.sort(key=lambda text: not text[0])
    diverging = sum(parted for parted, _ in texts)
    chosen = [text for _, text in texts[: min(_MOST_MEASURED, max(_MEASURED, diverging))]]
    return measure(model, chosen, progress)


def _compare(
    model: CausalModel,
    params: SamplingParams,
    noise: Noise,
    number: int,
    plain: _Output,
    other: _Output,
    split: int | None,
) -> PromptAudit:
    if split is None:
        return PromptAudit(number, len(plain.prompt), len(plain.new), len(plain.new), None)
    history = plain.all[: len(plain.prompt) + split]
    tokens = [output.new[split] for output in (plain, other) if split < len(output.new)]
    assert params.seed is not None
    near = judge(
        last_logits(model, history),
        params,
        params.seed,
        history,
        len(plain.prompt),
        tokens,
        noise.bound,
        min(2.0**-23, epsilon_of(model.info)),
    )
    choices: list[Choice | None] = list(near.choices)
    if len(tokens) < 2:
        choices.insert(1 if split < len(plain.new) else 0, None)
    explained = all(choice is not None and choice.explained for choice in choices)
    divergence = Divergence(
        index=split,
        position=len(history),
        plain=choices[0],
        accelerated=choices[1],
        margin=near.margin,
        tolerance=2 * near.slack,
        verdict=NEAR_TIE if explained else DEFECT,
    )
    return PromptAudit(number, len(plain.prompt), len(other.new), split + 1, divergence)
