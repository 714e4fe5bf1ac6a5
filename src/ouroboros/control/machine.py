"""What this machine can do with weights of one format: measured once in about a second, and kept.

A small decoder of random weights, larger than most caches, is timed over a few rows: bytes and multiplications a second
are what explains these times as T(n) (cost.py). A model's T(n) begins from them and from its shapes, before any of its
own forwards. Where its forwards say otherwise by far, what is kept is measured anew the next time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ouroboros.control.cost import Costs, Prior
from ouroboros.directories import cache_directory, write_json
from ouroboros.errors import InputError, OuroborosError
from ouroboros.files import parse_json
from ouroboros.models.base import CausalModel, ModelInfo, ScoreRequest, Work
from ouroboros.models.config import DecoderConfig
from ouroboros.models.context import Context
from ouroboros.models.llama import LlamaModel
from ouroboros.models.packed import STORED
from ouroboros.models.quantised import QUANTISED, Precision
from ouroboros.models.stored import BLOCKS, StoredWeights
from ouroboros.tree import Origin, TokenTree

__all__ = [
    "Speeds",
    "forget_speeds",
    "machine",
    "prior_of",
    "processor_name",
    "sample_info",
    "speeds_of",
    "time_forward",
]

FORMAT = 1
ROWS = (1, 2, 4, 8, 16)
SECONDS = 0.6  # for forwards of the sample; making it takes about as long
# Weights of the sample: 50 million in one layer; and what eight layers of next to no weights cost.
SAMPLE = DecoderConfig(256, 2048, 5632, 1, 16, 4, 128, 4096)
THIN = DecoderConfig(256, 64, 128, 8, 4, 2, 16, 4096)
THIN_STORED = DecoderConfig(256, 256, 256, 8, 4, 2, 64, 4096)  # the same in whole blocks
KIND = "Q4_K"  # of the sample's blocks, for weights as a GGUF file holds them
GUESS = (1e10, 4e10)  # bytes, multiplications a second, where no sample can be made
ADAPTER = {"cpu": 9e-4, "cuda": 2.5e-4}  # seconds that transformers' own code takes around a layer


@dataclass(frozen=True, slots=True)
class Speeds:
    """``bytes``, ``products``: a second. ``exponent``: of the rows, in what arithmetic takes. ``layer``: seconds around
    the work of each layer."""

    bytes: float
    products: float
    exponent: float
    layer: float


def machine(device: str) -> str:
    """The processor that computes, and how much of it."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def processor_name() -> str:
    """As Linux calls the processor; elsewhere what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def prior_of(info: ModelInfo) -> Prior:
    """T(n) of a model as this machine's speeds and the model's shapes make it."""
    speeds, work = speeds_of(info), work_of(info)
    memory = work.bytes / speeds.bytes + work.layers * speeds.layer
    return Prior(max(memory, 1e-6), max(work.products / speeds.products, 1e-8), speeds.exponent)


def work_of(info: ModelInfo) -> Work:
    """What a forward has to do, by the number of parameters where nothing better is known."""
    if info.work.bytes:
        return info.work
    size = {"float64": 8, "float32": 4}.get(info.dtype, 1 if info.dtype in QUANTISED else 2)
    return Work(info.parameters * size, info.parameters)


def speeds_of(info: ModelInfo, directory: Path | None = None) -> Speeds:
    """Of what computes this model: kept ones, else measured now."""
    path = _path(info, directory)
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        if values.pop("format") == FORMAT and all(0 < value < math.inf for value in values.values()):
            return Speeds(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # none, or none that this version understands
    found = _measure(info)
    with contextlib.suppress(InputError):  # measured again then
        write_json({"format": FORMAT, **dataclasses.asdict(found)}, path)
    return found


def forget_speeds(info: ModelInfo, directory: Path | None = None) -> None:
    """They are not true any more."""
    with contextlib.suppress(OSError):
        _path(info, directory).unlink()


def _path(info: ModelInfo, directory: Path | None) -> Path:
    kind = f"{info.backend} {info.engine.partition(' (')[0]} {info.dtype} on {info.device}"
    key = hashlib.sha256(f"{kind}\n{machine(info.device)}".encode()).hexdigest()[:16]
    return (directory or cache_directory() / "machine") / f"{key}.json"


class _Random:
    """models.weights.WeightSource of small random numbers."""

    def __init__(self, config: DecoderConfig) -> None:
        self._shapes = config.shapes()
        self._numbers = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)) / 64

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._shapes.get(name)

    def get(self, name: str) -> Tensor:
        shape = self._shapes[name]
        count = int(torch.Size(shape).numel())
        return self._numbers.repeat(-(-count // len(self._numbers)))[:count].view(shape)


class _Blocks(_Random):
    """models.weights.StoredSource of one block again and again."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self._block = torch.randint(0, 256, (BLOCKS[KIND].bytes,), generator=torch.Generator().manual_seed(0))
        self._block = self._block.to(torch.uint8)
        self._block[:4] = torch.tensor([1e-3, 1e-3], dtype=torch.float16).view(torch.uint8)

    def stored(self, name: str) -> StoredWeights:
        rows, columns = self._shapes[name]
        return StoredWeights(KIND, self._block.repeat(rows, columns // BLOCKS[KIND].numbers), columns)

    def release(self, name: str) -> None:
        pass


def sample_info(weights: str, device: str = "cpu") -> ModelInfo:
    """What a small model is here whose weights have this format: a dtype of ``load``, or STORED.

    Raises:
        InputError, RuntimeError: it cannot be computed here.
    """
    return _model(weights, device, "kernels" if weights == STORED else "auto", thin=True).info


def _measure(info: ModelInfo) -> Speeds:
    around = ADAPTER[info.device.partition(":")[0]] if info.backend == "transformers" else 0.0
    try:
        sample, thin = _sample(info, thin=False), _sample(info, thin=True)
    except (OuroborosError, RuntimeError):  # a type that the native decoder does not compute
        return Speeds(*GUESS, 1.0, around)
    times = least_times(sample, ROWS, SECONDS)
    work = sample.info.work
    found = Costs.fitted(work, [(n, 1, seconds) for n, seconds in times.items()]).prior
    layer = max(around, least_times(thin, (1,), SECONDS / 6)[1] / THIN.num_hidden_layers)
    return Speeds(work.bytes / found.memory, work.products / found.row, found.exponent, layer)


def _sample(info: ModelInfo, thin: bool) -> LlamaModel:
    engine = info.engine.partition(" (")[0].partition(",")[0] if info.backend == "native" else "plain"
    return _model(info.dtype, info.device, engine or "auto", thin)


def _model(weights: str, device: str, engine: str, thin: bool) -> LlamaModel:
    if weights == STORED:
        config = THIN_STORED if thin else SAMPLE
        precision = Precision(torch.float32, STORED)
        return LlamaModel(config, _Blocks(config), frozenset(), precision, torch.device(device), engine)
    config = THIN if thin else SAMPLE
    return LlamaModel(config, _Random(config), frozenset(), Precision.of(weights), torch.device(device), engine)


def least_times(model: CausalModel, sizes: tuple[int, ...], seconds: float) -> dict[int, float]:
    """The least time of a forward over each of these numbers of rows, in turns; three rounds at least."""
    context = Context(model)
    context.prefill([1, 1])
    times = {n: float("inf") for n in sizes}
    for n in sizes:
        time_forward(context, n, [1, 1])  # to warm up
    began, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - began < seconds:
        for n in sizes:
            times[n] = min(times[n], time_forward(context, n, [1, 1]))
        rounds += 1
    return times


def time_forward(context: Context, rows: int, tokens: list[int]) -> float:
    """Seconds of a forward over a tree of so many nodes: two chains that share the root, where the model takes trees; a
    mask costs what it costs."""
    info, root = context.model.info, tokens[-1]
    tree = TokenTree(root)
    ends = [0, 0]
    for i in range(rows - 1):
        branch = i % 2 if info.trees else 0
        ends[branch] = tree.add(ends[branch], (root + 1 + branch) % info.vocab_size, Origin.DRAFT)
    began = time.perf_counter()
    logits_NV = context.model.score([ScoreRequest(context.slot, tree)])[0]
    logits_NV[-1, -1].item()  # waits for the device
    taken = time.perf_counter() - began
    context.follow(tokens)
    return taken
