"""Ranks: the processes that hold one model's parts. Rank 0 says what is to be computed, the others hear it.

Messages go through the store by which torch.distributed's processes have found each other, where waiting can be given
up; each rank's pulse goes there too. So whoever waits notices within ``SILENCE`` seconds that another rank has ended or
hangs, and says which. Messages are pickled, as torch's own are between ranks: they trust one another. It knows nothing
of decoding.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
import time
import weakref
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ouroboros.errors import LoadError, OuroborosError

__all__ = ["Ranks", "is_spread", "own_part"]

PULSE = 2.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without one, after which a rank is taken for gone
FORWARD = 45.0  # seconds that ranks wait for each other in one exchange of a forward
WAIT = timedelta(seconds=5)  # for a message, before the sender's pulse is looked at


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
    """Made on every rank alike, as many times; the makings are told apart by their number.

    Args:
        module: one whose weights lie in all processes of torch.distributed.

    Raises:
        LoadError: they lie in some of the processes alone.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        mesh = _mesh(module)
        assert mesh is not None, "the module is in one process"
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        if mesh.size() != self.size:
            raise LoadError(f"its weights lie in {mesh.size()} of {self.size} processes; it must be all of them")
        for dimension in range(mesh.ndim):
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=FORWARD), mesh.get_group(dimension))
        self._store = _own_store()
        self._name = f"ouroboros-{self._store.add(f'ouroboros-made-{self.rank}', 1)}"
        self._sent = self._heard = self._dropped = self._met = 0
        self._pulses: dict[int, tuple[bytes, float]] = {}  # of other ranks: the last one, and when it was new
        stop = threading.Event()
        arguments = (_own_store(), f"{self._name}/pulse-{self.rank}", stop)
        threading.Thread(target=_beat, args=arguments, name="ouroboros-pulse", daemon=True).start()
        self._end = weakref.finalize(self, stop.set)

    @property
    def leads(self) -> bool:
        """Whether this rank decides."""
        return self.rank == 0

    def send(self, message: object) -> None:
        """To all others, who hear messages in their order."""
        self._try(lambda: self._store.set(f"{self._name}/{self._sent}", pickle.dumps(message)))
        self._sent += 1

    def drop(self) -> None:
        """All that was sent has been heard, which the caller knows."""
        for number in range(self._dropped, self._sent):
            self._try(lambda number=number: self._store.delete_key(f"{self._name}/{number}"))
        self._dropped = self._sent

    def hear(self) -> Any:
        """The next message of rank 0.

        Raises:
            OuroborosError: rank 0 is gone.
        """
        data = self._wait(f"{self._name}/{self._heard}", 0)
        self._heard += 1
        return pickle.loads(data)

    def meet(self) -> None:
        """Rank 0 waits here for all others, for as long as they live.

        Raises:
            OuroborosError: another rank is gone.
        """
        self._met += 1
        if not self.leads:
            self._try(lambda: self._store.set(f"{self._name}/met-{self._met}-{self.rank}", b""))
            return
        for rank in range(1, self.size):
            key = f"{self._name}/met-{self._met}-{rank}"
            self._wait(key, rank)
            self._try(lambda key=key: self._store.delete_key(key))

    def _wait(self, key: str, rank: int) -> bytes:
        """The value of a key that this rank is to set."""
        while True:
            try:
                self._store.wait([key], WAIT)
                return bytes(self._store.get(key))
            except dist.DistStoreError:  # not yet
                self._check(rank)
            except RuntimeError as error:
                raise self.gone(error) from error

    def _check(self, rank: int) -> None:
        """
        Raises:
            OuroborosError: this rank has given no sign of life for too long.
        """
        key, now = f"{self._name}/pulse-{rank}", time.monotonic()
        pulse = b""
        with contextlib.suppress(dist.DistStoreError):
            if self._store.check([key]):
                pulse = bytes(self._store.get(key))
        last, since = self._pulses.get(rank, (None, now))
        if pulse != last:
            self._pulses[rank] = pulse, now
        elif now - since > SILENCE:
            told = f"rank {rank} of {self.size} has given no sign of life for {now - since:.0f} seconds"
            raise OuroborosError(f"{told}: it has ended or hangs; rank {self.rank} stops here")

    def gone(self, error: BaseException) -> OuroborosError:
        """What an error of torch.distributed means here."""
        reason = (" ".join(str(error).split()) or type(error).__name__)[:160]
        return OuroborosError(
            f"rank {self.rank} of {self.size} has lost another rank, which has ended or hangs ({reason})"
        )

    def _try(self, call: Any) -> None:
        try:
            call()
        except RuntimeError as error:
            raise self.gone(error) from error


def _own_store() -> Any:
    """A connection of one's own: a wait on a shared one would hold up all others."""
    return dist.distributed_c10d._get_default_store().clone()


def _beat(store: Any, key: str, stop: threading.Event) -> None:
    count = 0
    with contextlib.suppress(RuntimeError):  # the store is gone, and with it whoever would look
        while not stop.is_set():
            store.set(key, str(count))
            count += 1
            stop.wait(PULSE)
