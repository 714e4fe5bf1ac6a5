"""Other engines on the same weights, prompts and machine: which there are, and which are to be had here.

Every peer takes and gives token ids. What cannot run is ``Absent`` and says why: a peer is never a reason to crash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ouroboros.bench.peers.base import Absent, Peer, PeerResult
from ouroboros.errors import InputError, LoadError

__all__ = ["DTYPES", "PEERS", "Absent", "Peer", "PeerResult", "open_peers"]

_TRANSFORMERS = ("transformers", "transformers-assisted", "transformers-prompt-lookup")
_PROGRAMS = ("llama.cpp-speculative", "llama.cpp-lookahead", "llama.cpp-lookup")  # where they are on the PATH
_LLAMA = ("llama.cpp", "llama.cpp-prompt-lookup", *_PROGRAMS)
DTYPES = ("float32", "bfloat16", "float16", "float64")
PEERS = (*_TRANSFORMERS, *_LLAMA)


def open_peers(
    names: Sequence[str],
    *,
    target: str,
    draft: str | None,
    dtype: str,
    threads: int | None,
    device: str = "auto",
    llama_python: str | None = None,
    draft_tokens: Mapping[str, int] | None = None,
) -> list[Peer | Absent]:
    """Each named peer with its models loaded, or why it is absent, in the order of ``names``.

    Peers of one engine share its weights; ``close`` each of them.

    Args:
        names: of ``PEERS``. target, draft: checkpoint directories, GGUF files (llama.cpp runs these) or hub ids.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``; llama.cpp gets matrices of this type.
        threads: of PyTorch and llama.cpp; None: as many as PyTorch has.
        device: of transformers. llama.cpp computes where its build can.
        llama_python: the Python that has llama-cpp-python and gguf, if it is another one than this.
        draft_tokens: by peer, how many tokens a step proposes; else the engine's default.

    Raises:
        InputError: an unknown name, or a dtype or device that is not allowed. LoadError: no such checkpoint.
    """
    from ouroboros.models.loading import resolve

    chosen = dict(draft_tokens or {})
    unknown = [name for name in (*names, *chosen) if name not in PEERS]
    if unknown:
        raise InputError(f"peer must be one of {', '.join(PEERS)}, not {unknown[0]!r}")
    if min(chosen.values(), default=1) < 1:
        raise InputError(f"draft tokens of a peer must be at least 1, not {min(chosen.values())}")
    if dtype not in DTYPES:
        raise InputError(f"dtype of the peers must be one of {', '.join(DTYPES)}, not {dtype!r}")
    paths = resolve(target), None if draft is None else resolve(draft)
    makers = {
        _TRANSFORMERS: lambda: _transformers(*paths, dtype, threads, device),
        _LLAMA: lambda: _llama(*paths, dtype, threads, llama_python),
    }
    found: dict[str, Peer | Absent] = {}
    for family, make in makers.items():
        wanted = [name for name in dict.fromkeys(names) if name in family]
        found |= _open(wanted, make, chosen) if wanted else {}
    return [found[name] for name in names]


Maker = Callable[[str, int | None], Peer]


def _open(names: Sequence[str], make: Callable[[], Maker], draft_tokens: Mapping[str, int]) -> dict[str, Peer | Absent]:
    """The peers of one engine; if it does not start, all are absent for the same reason."""
    try:
        one = make()
    except LoadError as error:
        return {name: Absent(name, str(error)) for name in names}
    found: dict[str, Peer | Absent] = {}
    for name in names:
        try:
            found[name] = one(name, draft_tokens.get(name))
        except LoadError as error:
            found[name] = Absent(name, str(error))
    return found


def _transformers(target: Path, draft: Path | None, dtype: str, threads: int | None, device: str) -> Maker:
    import torch

    from ouroboros.bench.peers.generate import GeneratePeer, Weights
    from ouroboros.models.loading import pick_device, pick_dtype

    if target.is_file() or (draft is not None and draft.is_file()):
        raise LoadError("needs directories in Hugging Face layout, not GGUF files")
    place = pick_device(device)
    weights = Weights(target, draft, pick_dtype(dtype, torch.float32, 0, place), place)
    if threads is not None:
        torch.set_num_threads(threads)
    return lambda name, count: GeneratePeer(name, weights, count)


def _llama(target: Path, draft: Path | None, dtype: str, threads: int | None, python: str | None) -> Maker:
    import torch

    from ouroboros.bench.peers.llama import Llama, LlamaPeer
    from ouroboros.bench.peers.llama_programs import ProgramPeer

    llama = Llama(target, draft, dtype, threads or torch.get_num_threads(), python)

    def make(name: str, draft_tokens: int | None) -> Peer:
        llama.join()  # so that files are kept while this one is made, and go if it fails
        try:
            return (ProgramPeer if name in _PROGRAMS else LlamaPeer)(name, llama, draft_tokens)
        finally:
            llama.leave()

    return make
