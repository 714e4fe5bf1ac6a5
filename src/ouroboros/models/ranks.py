"""Ranks: the processes that hold one model's parts. Rank 0 says what is to be computed, the others hear it.

Messages go through the store by which torch.distributed's processes have found each other, and so does each rank's
pulse. So whoever waits notices within ``SILENCE`` seconds that another rank has ended or hangs, and says which.
Messages are pickled, as torch's own are between ranks: they trust one another. It knows nothing of decoding.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import threading
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from ouroboros.errors import LoadError, OuroborosError

__all__ = ["Ranks", "is_spread", "own_part"]

PULSE = 2.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without one, after which a rank is taken for gone
FORWARD = 45.0  # seconds that ranks wait for each other in one exchange of a forward
WAIT = timedelta(seconds=5)  # for a message, before it is asked for again


def is_spread(module: torch.nn.Module) -> bool:
    """Whether a module's weights lie in several processes."""
    return _mesh(module) is not None


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What lies in this process of a tensor."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _mesh(module: torch.nn.Module) -> Any:
    if not (dist.is_available() and dist.is_initialized()):
        return None
    from torch.distributed.tensor import DTensor

    found = next((p for p in module.parameters() if isinstance(p, DTensor)), None)
    return None if found is None else found.device_mesh


class Ranks:
    """Made on every rank alike, as many times.

    Args:
        module: one whose weights lie in all processes of torch.distributed.

    Attributes:
        rank, size: of this process, and how many there are. lost: another one was; nothing can be computed any more.

    Raises:
        LoadError: they lie in some of the processes alone.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        mesh = _mesh(module)
        assert mesh is not None, "the module is in one process"
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.lost = False
        if mesh.size() != self.size:
            raise LoadError(f"its weights lie in {mesh.size()} of {self.size} processes; it must be all of them")
        for dimension in range(mesh.ndim):
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=FORWARD), mesh.get_group(dimension))
        self._store = _own_store()
        self._name = f"ouroboros-{self._store.add(f'ouroboros-made-{self.rank}', 1)}"
        self._sent = self._heard = self._dropped = self._met = 0
        self._asked: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        now = time.monotonic()
        self._pulses = {rank: (b"", now) for rank in range(self.size) if rank != self.rank}  # the last, and since when
        stop = threading.Event()
        # The store may be in a process that hangs: nobody but these threads waits for it.
        for target, arguments in (
            (_beat, (_own_store(), self._name, self.rank, self._pulses, stop)),
            (_serve, (self._asked, self._answers)),
        ):
            threading.Thread(target=target, args=arguments, name="ouroboros-ranks", daemon=True).start()
        weakref.finalize(self, stop.set)

    @property
    def leads(self) -> bool:
        """Whether this rank decides."""
        return self.rank == 0

    def send(self, message: object) -> None:
        """To all others, who hear messages in their order.

        Raises:
            OuroborosError: another rank is gone (as in all that follow).
        """
        key, data, store = f"{self._name}/{self._sent}", pickle.dumps(message), self._store
        self._do(lambda: store.set(key, data))
        self._sent += 1

    def drop(self) -> None:
        """All that was sent has been heard, which the caller knows."""
        keys, store = [f"{self._name}/{number}" for number in range(self._dropped, self._sent)], self._store
        self._do(lambda: [store.delete_key(key) for key in keys])
        self._dropped = self._sent

    def hear(self) -> Any:
        """The next message of rank 0."""
        data = self._wait(f"{self._name}/{self._heard}")
        self._heard += 1
        return pickle.loads(data)

    def meet(self) -> None:
        """Rank 0 waits here for all others, for as long as they live."""
        self._met += 1
        store, key = self._store, f"{self._name}/met-{self._met}"
        if not self.leads:
            self._do(lambda: store.set(f"{key}-{self.rank}", b""))
            return
        for rank in range(1, self.size):
            self._wait(f"{key}-{rank}")
            self._do(partial(store.delete_key, f"{key}-{rank}"))

    def _wait(self, key: str) -> bytes:
        """The value of a key, once it has one."""
        store = self._store

        def wait() -> bytes:
            while True:
                try:
                    store.wait([key], WAIT)
                    return bytes(store.get(key))
                except dist.DistStoreError:  # not yet
                    if self.lost:
                        raise

        found: bytes = self._do(wait)
        return found

    def _do(self, call: Callable[[], Any]) -> Any:
        """What a call of the store returns; meanwhile the others' pulses are looked at."""
        self._asked.put(call)
        while True:
            try:
                found = self._answers.get(timeout=1.0)
            except queue.Empty:
                self._check()
                continue
            if isinstance(found, Exception):
                raise self.gone(found) from found
            return found

    def _check(self) -> None:
        """
        Raises:
            OuroborosError: a rank has given no sign of life for too long.
        """
        now = time.monotonic()
        for rank, (_, since) in self._pulses.items():
            if now - since > SILENCE:
                self.lost = True
                told = f"rank {rank} of {self.size} has given no sign of life for {now - since:.0f} seconds"
                raise OuroborosError(f"{told}: it has ended or hangs; rank {self.rank} stops here")

    def gone(self, error: BaseException) -> OuroborosError:
        """What an error of torch.distributed means here."""
        self.lost = True
        reason = (" ".join(str(error).split()) or type(error).__name__)[:160]
        told = f"rank {self.rank} of {self.size} has lost another rank"
        return OuroborosError(f"{told}, which has ended or hangs ({reason})")


def _own_store() -> Any:
    """A connection of one's own: a wait on a shared one would hold up all others."""
    store: Any = dist.distributed_c10d._get_default_store()  # torch's types do not know of clone
    return store.clone()


def _serve(asked: queue.SimpleQueue[Callable[[], Any]], answers: queue.SimpleQueue[Any]) -> None:
    """Makes the calls of the store, one after the other."""
    while True:
        try:
            answers.put(asked.get()())
        except Exception as error:
            answers.put(error)


def _beat(store: Any, name: str, rank: int, pulses: dict[int, tuple[bytes, float]], stop: threading.Event) -> None:
    """Gives signs of life, and notes those of others."""
    count = 0
    with contextlib.suppress(RuntimeError):  # the store is gone: whoever waits is told by its own connection
        while not stop.is_set():
            store.set(f"{name}/pulse-{rank}", str(count))
            count += 1
            for other, (last, _) in pulses.items():
                key = f"{name}/pulse-{other}"
                found = bytes(store.get(key)) if store.check([key]) else b""
                if found != last:
                    pulses[other] = found, time.monotonic()
            stop.wait(PULSE)
