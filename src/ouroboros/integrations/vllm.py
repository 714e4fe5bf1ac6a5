"""``OuroborosProposer``: phrases as vLLM's drafts, by its method ``custom_class`` (docs/vllm.md).

vLLM makes one with its own configuration and asks it after each forward for chains. It tells requests by their row in
its batch alone, and rows change hands; so a request is known again by its length and last tokens. What requests leave
goes to later ones, and into a file if one is named. It imports nothing of vLLM: what it needs is on the configuration.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from multiprocessing import util
from pathlib import Path
from typing import Any

from ouroboros.config.checks import check_int, check_number, is_number
from ouroboros.control.estimates import SAID, Calibration
from ouroboros.errors import InputError, OuroborosError, PoolFileError
from ouroboros.integrations.chains import Chain, Spending
from ouroboros.phrases.lock import PoolLock
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.pool import PhrasePool
from ouroboros.phrases.storage import load_pool, save_pool
from ouroboros.text import Tokenizer

__all__ = ["OuroborosProposer", "ProposerOptions"]

_LOGGER = logging.getLogger("ouroboros.vllm")
TAIL = 32  # last tokens by which a request is known again
LOST = 64  # calls after which a request that was not seen is over


@dataclass(frozen=True, slots=True)
class ProposerOptions:
    """What stands in vLLM's ``additional_config={"ouroboros": {…}}``.

    Attributes:
        memory: a phrase pool's file, read at the start and written every ``save_every`` seconds and at the end; None:
            what is learned ends with the process. read_only: it is never written. share: what a request leaves goes to
            later ones; else each draws on its own text, and on the file. min_chance: nothing is proposed that is
            accepted with less than this chance, however cheap. by_cost: nor what is not worth its time on this machine.
        max_keys: bound of what is remembered.

    Raises:
        InputError: a value out of range.
    """

    memory: str | None = None
    read_only: bool = False
    save_every: float = 300.0
    share: bool = True
    min_chance: float = 0.1
    by_cost: bool = True
    max_keys: int = 300_000

    def __post_init__(self) -> None:
        if self.memory is not None and not isinstance(self.memory, str):
            raise InputError(f"memory must be the path of a phrase pool or None, not {self.memory!r}")
        for name in ("read_only", "share", "by_cost"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be true or false, not {getattr(self, name)!r}")
        every, chance = self.save_every, self.min_chance
        check_number("save_every", every, is_number(every) and every >= 1, "a number of seconds of at least 1")
        check_number("min_chance", chance, is_number(chance) and 0 < chance <= 1, "a number above 0, at most 1")
        check_int("max_keys", self.max_keys, 1000)
        if self.read_only and self.memory is None:
            raise InputError("read_only needs memory, the path of a phrase pool")

    @classmethod
    def of(cls, config: object) -> ProposerOptions:
        """From vLLM's ``additional_config``.

        Raises:
            InputError: an unknown option, or a value out of range.
        """
        given = config.get("ouroboros", {}) if isinstance(config, Mapping) else {}
        if not isinstance(given, Mapping):
            raise InputError(f"additional_config['ouroboros'] must be a mapping of options, not {given!r}")
        known = [one.name for one in fields(cls)]
        for name in given:
            if name not in known:
                raise InputError(f"unknown option {name!r} in additional_config['ouroboros']; there are {known}")
        return cls(**given)


@dataclass(slots=True)
class _Seen:
    """A request, when it was seen last, in which row, and how many tokens were proposed then."""

    chain: Chain
    call: int = -1
    row: int = -1
    proposed: int = 0


@dataclass(slots=True)
class _Kept:
    """What outlives requests. ``save`` writes it, where that is wanted and something has changed."""

    memory: Memory
    path: Path | None = None
    bound: str = ""
    lock: PoolLock | None = None
    chances: Calibration = field(default_factory=lambda: Calibration(said=SAID))
    changed: bool = False

    def save(self) -> None:
        if self.lock is not None and self.path is not None and self.changed:
            try:
                save_pool(self.memory, self.path, self.bound, self.lock)
                self.changed = False
            except PoolFileError as error:
                _LOGGER.warning("%s", error)


class OuroborosProposer:
    """See the header; one for each of vLLM's workers.

    Args:
        vllm_config: vLLM's. clock: seconds, by which forwards are timed.

    Raises:
        InputError: a bad option. PoolFileError: the memory cannot be read, belongs to another vocabulary, or another
            process saves to it.
    """

    def __init__(self, vllm_config: Any, clock: Callable[[], float] = time.perf_counter) -> None:
        self.options = ProposerOptions.of(vllm_config.additional_config)
        model = vllm_config.model_config
        self._most = int(vllm_config.speculative_config.num_speculative_tokens)
        self._positions = int(model.max_model_len)
        self._stop_ids = _ids(getattr(model.hf_text_config, "eos_token_id", None))
        self._clock = clock
        self._spending = Spending() if self.options.by_cost else None
        self._rows: dict[int, _Seen] = {}
        self._seen: list[_Seen] = []
        self._call = 0
        self._began: float | None = None  # when the last call did, if all that followed is known
        self._kept = _open(self.options, vllm_config)
        self._saved = clock()
        # Workers leave by os._exit, which runs this and nothing of atexit.
        util.Finalize(self, self._kept.save, exitpriority=10)

    def load_model(self, *args: object, **settings: object) -> None:
        """vLLM asks for it; there is no model to load."""

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: Any,
        token_ids_cpu: Any,
        slot_mappings: object = None,
    ) -> list[list[int]]:
        """The chains that the next forward verifies, one a row, [] where nothing pays.

        Args:
            sampled_token_ids: each row's new tokens, [] while its prompt is read. num_tokens_no_spec: int [rows or
                more], tokens of each row, the new ones included. token_ids_cpu: int32 [rows or more, max_model_len].
            slot_mappings: of no use here.
        """
        now, self._call = self._clock(), self._call + 1
        found: list[tuple[int, _Seen]] = []
        known, rows = self._began is not None, 0
        for row, tokens in enumerate(sampled_token_ids):
            if not len(tokens):
                known = False
                continue
            seen = self._request(row, int(num_tokens_no_spec[row]) - len(tokens), token_ids_cpu[row])
            known &= seen.call == self._call - 1
            rows += 1 + seen.proposed
            seen.call, seen.row = self._call, row
            seen.chain.grow([int(token) for token in tokens])
            found.append((row, seen))
        if known and self._began is not None and self._spending is not None:
            self._spending.observe(rows, now - self._began)
        self._began = now if found else None
        self._kept.changed |= bool(found)
        self._forget(found)
        chains = self._chains([seen for _, seen in found])
        result: list[list[int]] = [[] for _ in sampled_token_ids]
        for (row, seen), chain in zip(found, chains, strict=True):
            result[row], seen.proposed = chain, len(chain)
        return result

    def _chains(self, requests: Sequence[_Seen]) -> list[list[int]]:
        offers = []
        for seen in requests:
            room = min(self._most, self._positions - len(seen.chain.text) - 1)
            offers.append(seen.chain.propose(room, self.options.min_chance))
        if self._spending is None:
            return [tokens for tokens, _ in offers]
        sizes = self._spending.lengths([chances for _, chances in offers])
        return [tokens[:size] for (tokens, _), size in zip(offers, sizes, strict=True)]

    def _request(self, row: int, length: int, ids: Any) -> _Seen:
        """Who is in this row, with ``length`` tokens before the new ones: the one that was there, or that moved here,
        or a new one. Its text is brought to that length."""
        last = self._rows.get(row)
        for seen in ([last] if last is not None else []) + self._seen:
            text = seen.chain.text
            start = max(0, len(text) - TAIL)
            close = length == len(text) or (seen is last and len(text) < length <= len(text) + self._most + TAIL)
            if close and seen.call < self._call and ids[start : len(text)].tolist() == text[start:]:
                if length > len(text):  # there were steps without a call
                    seen.call = -1
                    seen.chain.grow(ids[len(text) : length].tolist())
                return seen
        memory = self._kept.memory if self.options.share else Memory.over(self._kept.memory, 30_000, 1, 1)
        chain = Chain(memory, self._kept.chances, ids[:length].tolist(), self._stop_ids)
        seen = _Seen(chain)
        self._seen.append(seen)
        return seen

    def _forget(self, found: Sequence[tuple[int, _Seen]]) -> None:
        """Requests that are over, and now and then what was learned goes into the file."""
        self._rows = dict(found)
        if any(seen.call < self._call - LOST for seen in self._seen):
            self._seen = [seen for seen in self._seen if seen.call >= self._call - LOST]
        if self._clock() - self._saved > self.options.save_every:
            self._kept.save()
            self._saved, self._began = self._clock(), None


def _ids(value: object) -> frozenset[int]:
    return frozenset({value} if isinstance(value, int) else value if isinstance(value, list | tuple) else ())


def _open(options: ProposerOptions, vllm_config: Any) -> _Kept:
    """The memory, from its file where there is one. Of several workers the first alone saves to it."""
    if options.memory is None:
        return _Kept(Memory(PhrasePool(options.max_keys)))
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    path, size = Path(options.memory), int(model.get_vocab_size())
    try:
        bound = Tokenizer.from_directory(Path(model.tokenizer)).fingerprint  # type: ignore[union-attr]
    except (OuroborosError, AttributeError) as error:
        raise InputError(f"memory needs the tokenizer's files; {model.tokenizer!r} has none: {error}") from error
    first = parallel.rank == 0 and getattr(parallel, "data_parallel_rank", 0) == 0
    if not path.parent.is_dir():
        raise InputError(f"memory {str(path)!r} cannot be made: there is no directory {str(path.parent)!r}")
    lock = PoolLock(path) if first and not options.read_only else None
    memory = Memory(PhrasePool(options.max_keys))
    if path.exists() or options.read_only:
        memory = load_pool(path, bound, size)
    return _Kept(memory, path, bound, lock)
