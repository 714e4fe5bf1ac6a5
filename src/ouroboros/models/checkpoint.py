"""What a checkpoint holds: config.json, generation_config.json, safetensors files; or a loaded module's tensors.

Everything that cannot be read exactly is refused here, with one line that names it. It knows nothing of what computes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ouroboros.errors import LoadError, UnsupportedArchitecture
from ouroboros.files import check_directory, read_json, regular
from ouroboros.models.config import DecoderConfig
from ouroboros.models.families import parse_config
from ouroboros.models.weights import WeightSource, unknown_tensor

__all__ = [
    "DTYPES",
    "GROWN",
    "Checkpoint",
    "Tensors",
    "check_code",
    "module_checkpoint",
    "read_directory",
    "resolve",
    "stored_dtype",
]

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
GROWN = "ouroboros_grown"  # the field of config.json by which a grown checkpoint says so
OTHERS = ["original/*", "consolidated*"]  # the same weights again, in their makers' own layout


class Tensors(WeightSource, Protocol):
    """Stored tensors of a checkpoint."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings."""

    def shares(self, name: str, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether a model of this dtype and device takes no memory for the tensor."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was read: ``raw``: config.json, which ``config`` is made of; ``grown``: see base.ModelInfo."""

    raw: Mapping[str, object]
    config: DecoderConfig
    eos_token_ids: frozenset[int]
    weights: Tensors
    grown: str | None = None


def resolve(source: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """The directory of a checkpoint; a hub id (``owner/name``) is fetched into the hub's own cache.

    Raises:
        LoadError: neither a directory nor a hub repository that can be had.
    """
    name = str(source)
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return path
        is_file = path.exists()
    except (OSError, RuntimeError) as error:  # a name too long, a home directory of nobody
        raise LoadError(f"no such directory: {name[:80]!r} ({_one_line(error)})") from error
    parts = name.split("/")
    if is_file:
        raise LoadError(f"{name!r} is a file; a model is a directory with config.json and safetensors files")
    if len(parts) != 2 or not all(parts) or name[0] in "./~":
        raise LoadError(f"no such directory: {name!r} (a model is a directory or a hub id like 'owner/name')")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "tokenizer*", "*.model", "*.jinja"]
    try:
        return Path(
            snapshot_download(name, revision=revision, token=token, allow_patterns=patterns, ignore_patterns=OTHERS)
        )
    except Exception as error:  # the hub's client raises dozens of unrelated types
        raise LoadError(f"{name!r} is no directory, and the hub did not give it: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def stored_dtype(path: Path) -> torch.dtype:
    """The type of a checkpoint's weights, as its files tell: that of the embeddings, else of the first tensor.

    Raises:
        LoadError: no safetensors files, damaged ones, or of a type that is not computed in.
    """
    return _Files(path).dtype


def read_directory(path: Path) -> Checkpoint:
    """Opens a checkpoint in Hugging Face layout; no tensor is read yet.

    Raises:
        UnsupportedArchitecture: the native decoder does not compute this model. LoadError: missing or damaged files.
    """
    try:
        check_directory(path)
        raw = read_json(path / "config.json")
        if raw is None:
            raise LoadError("it holds no config.json")
        config = parse_config(raw)  # before the weights, which another architecture may keep in other files
        check_code(raw)
        eos = _end_tokens(raw, read_json(path / "generation_config.json") or {})
        if regular(path / "adapter_config.json"):
            raise LoadError("it holds an adapter (adapter_config.json), which is not applied: merge it first")
        weights = _Files(path)
        unknown = unknown_tensor(config, weights.names())
        if unknown is not None:
            kind = raw["model_type"]
            raise LoadError(f"tensor {unknown!r} is none that the architecture {kind!r} with this config.json has")
        return Checkpoint(raw, _tied(config, weights), eos, weights, _grown(raw))
    except LoadError as error:
        raise type(error)(f"cannot load {str(path)!r}: {error}") from error


def module_checkpoint(module: torch.nn.Module) -> Checkpoint:
    """What a loaded Hugging Face module of the Llama kind holds (its ``config`` and ``state_dict``).

    Raises:
        UnsupportedArchitecture: the native decoder does not compute this model. LoadError: no such module.
    """
    theirs = getattr(module, "config", None)
    if theirs is None or not hasattr(theirs, "to_dict"):
        raise LoadError("it is no transformers model")
    raw = theirs.to_dict()
    generation = getattr(module, "generation_config", None)
    eos = _end_tokens(raw, generation.to_dict() if generation is not None else {})
    config, weights = parse_config(raw), _State(module.state_dict())
    unknown = unknown_tensor(config, weights.names())
    if unknown is not None:
        raise UnsupportedArchitecture(f"tensor {unknown!r} is none of the architecture's own")
    return Checkpoint(raw, _tied(config, weights), eos, weights, _grown(raw))


def _tied(config: DecoderConfig, weights: Tensors) -> DecoderConfig:
    """As transformers does: an output matrix that is there and another than the embeddings is used, whatever the config
    says."""
    head, embeddings = "lm_head.weight", "model.embed_tokens.weight"
    if not config.tie_word_embeddings or None in (weights.shape(head), weights.shape(embeddings)):
        return config
    both = weights.get(head), weights.get(embeddings)
    same = both[0].data_ptr() == both[1].data_ptr() or torch.equal(*both)
    return config if same else replace(config, tie_word_embeddings=False)


def _grown(raw: Mapping[str, object]) -> str | None:
    grown = raw.get(GROWN)
    return None if grown is None else str(grown)


def check_code(raw: Mapping[str, object], known: str | None = None) -> None:
    """Refuses a model that is computed by Python code which lies beside it: that is never run.

    Many a checkpoint brings the code of a class that transformers has had since; the class's name is the same then.

    Args:
        raw: config.json. known: the class that computes this model type, where it does not follow from the type.

    Raises:
        LoadError: see above.
    """
    names = raw.get("auto_map")
    code = names.get("AutoModelForCausalLM") if isinstance(names, Mapping) else None
    own = {str(raw.get("model_type")).replace("_", "") + "forcausallm", (known or "").lower()}
    if code is not None and str(code).rsplit(".", 1)[-1].lower() not in own:
        raise LoadError(
            f"config.json asks for Python code of the checkpoint's own (auto_map: {code!r:.80}), which is never run"
        )


def _end_tokens(*files: Mapping[str, object]) -> frozenset[int]:
    """All ids that config.json and generation_config.json call the end of a text."""
    found = [file.get("eos_token_id") for file in files]
    values = [v for value in found for v in (value if isinstance(value, list | tuple) else [value])]
    return frozenset(v for v in values if isinstance(v, int) and not isinstance(v, bool))


def _shards(path: Path) -> list[Path]:
    """The files that the index names; none without an index."""
    index = read_json(path / "model.safetensors.index.json")
    if index is None:
        return []
    shards = index.get("weight_map")
    if not isinstance(shards, dict):
        raise LoadError("model.safetensors.index.json has no weight_map")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if name != Path(name).name or name in ("", ".", ".."):
            raise LoadError(f"model.safetensors.index.json names the file {name!r:.80}; files lie beside it")
    return [path / name for name in names]


class _Files:
    """The tensors of all safetensors files of a directory, read when asked for."""

    def __init__(self, path: Path) -> None:
        files = [path / "model.safetensors"]  # goes before an index, as in transformers
        if not regular(files[0]):
            files = _shards(path) or sorted(path.glob("*.safetensors"))
        if not files:
            raise LoadError("it holds no *.safetensors file")
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        for file in files:
            try:
                regular(file)
                with safe_open(file, framework="pt") as reader:
                    for name in reader.keys():  # noqa: SIM118 - it is no mapping
                        self._shapes[name], self._files[name] = tuple(reader.get_slice(name).get_shape()), file
            except (SafetensorError, OSError) as error:
                raise LoadError(f"{file.name} is missing, cut short or damaged ({error})") from error

    @property
    def dtype(self) -> torch.dtype:
        name = "model.embed_tokens.weight"
        name = name if name in self._files else next(iter(self._files), "")
        return self.get(name).dtype if name else torch.float32

    def names(self) -> Collection[str]:
        return self._shapes.keys()

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._shapes.get(name)

    def shares(self, name: str, dtype: torch.dtype, device: torch.device) -> bool:
        return False

    def get(self, name: str) -> Tensor:
        # Opened anew each time: the pages of a file that stays open count as this process's memory until its end.
        with safe_open(self._files[name], framework="pt") as reader:
            return _checked(name, reader.get_tensor(name))


class _State:
    """The tensors of a loaded module."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self._tensors.values())).dtype

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...] | None:
        return tuple(self._tensors[name].shape) if name in self._tensors else None

    def shares(self, name: str, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether the decoder can use the tensor as it lies there: those that it stacks are copied in any case."""
        stacked = any(part in name for part in (".q_proj.", ".k_proj.", ".v_proj.", ".gate_proj.", ".up_proj."))
        tensor = self._tensors[name]
        here = tensor.device.type == device.type and device.index in (None, tensor.device.index)
        return here and not stacked and tensor.dtype == dtype

    def get(self, name: str) -> Tensor:
        return _checked(name, self._tensors[name].detach())


def _checked(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in DTYPES.values():
        raise LoadError(f"tensor {name!r} is stored as {tensor.dtype}; supported are {', '.join(DTYPES)}")
    if tensor.is_meta:
        raise LoadError(f"tensor {name!r} is not in memory (device meta)")
    return tensor
