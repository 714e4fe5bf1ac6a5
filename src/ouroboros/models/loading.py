"""From a directory or a hub id to a model: config.json, generation_config.json, safetensors files.

Everything that cannot be loaded exactly is refused here, with one line that names it. It knows nothing of decoding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ouroboros.errors import InputError, LoadError
from ouroboros.models.llama import LlamaConfig, LlamaModel

__all__ = ["DTYPES", "load_directory", "load_module", "pick_device", "resolve"]

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
SMALL = 64_000_000  # parameters: below this a CPU loses nothing by computing in float32, and rounds less


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
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises dozens of unrelated types
        raise LoadError(f"{name!r} is no directory, and the hub did not give it: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def pick_device(device: str) -> torch.device:
    """``auto`` is the first CUDA device, else the CPU.

    Raises:
        InputError: unknown, or not on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, not {device!r}") from None
    if picked.type not in ("cpu", "cuda") or str(picked) != str(device):  # torch reads cuda:256 as cuda:0
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, not {device!r}")
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device!r} is not on this machine ({torch.cuda.device_count()} CUDA devices)")
    return picked


def pick_dtype(dtype: str | torch.dtype, stored: torch.dtype, parameters: int, device: torch.device) -> torch.dtype:
    """``auto`` keeps the checkpoint's own type, but float32 on a CPU for small models and for float16 files.

    Raises:
        InputError: unknown dtype.
    """
    if dtype == "auto":
        if device.type == "cpu" and (stored == torch.float16 or parameters < SMALL):
            return torch.float32
        return stored
    found = dtype if isinstance(dtype, torch.dtype) else DTYPES.get(str(dtype))
    if found not in DTYPES.values():
        raise InputError(f"dtype must be auto or one of {', '.join(DTYPES)}, not {dtype!r}")
    assert isinstance(found, torch.dtype)
    return found


def load_directory(path: Path, dtype: str | torch.dtype, device: torch.device) -> LlamaModel:
    """Loads a checkpoint in Hugging Face layout.

    Raises:
        LoadError: config or tensors are missing, damaged, of another architecture or of wrong shapes.
        InputError: unknown dtype.
    """
    try:
        raw = _read_json(path / "config.json")
        if raw is None:
            raise LoadError("it holds no config.json")
        generation = _read_json(path / "generation_config.json") or {}
        return _build(raw, generation, _Files(path), dtype, device)
    except LoadError as error:
        raise LoadError(f"cannot load {str(path)!r}: {error}") from error


def load_module(module: torch.nn.Module, dtype: str | torch.dtype, device: str) -> LlamaModel:
    """Takes over a loaded Hugging Face module of the Llama architecture (its ``config`` and ``state_dict``).

    Raises:
        LoadError: no such module, or another architecture. InputError: unknown dtype.
    """
    config = getattr(module, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        raise LoadError(f"a loaded model must be a transformers model, not {type(module).__name__}")
    state = _State(module.state_dict())
    generation = getattr(module, "generation_config", None)
    place = next(module.parameters()).device if device == "auto" else pick_device(device)
    kind = next(module.parameters()).dtype if dtype == "auto" else dtype
    try:
        return _build(config.to_dict(), generation.to_dict() if generation is not None else {}, state, kind, place)
    except LoadError as error:
        raise LoadError(f"cannot use the loaded {type(module).__name__}: {error}") from error


def _build(
    raw: Mapping[str, object],
    generation: Mapping[str, object],
    weights: _Files | _State,
    dtype: str | torch.dtype,
    device: torch.device,
) -> LlamaModel:
    config = parse_config(raw)
    parameters = sum(math.prod(shape) for shape in config.shapes().values())
    eos = _token_ids(raw.get("eos_token_id")) | _token_ids(generation.get("eos_token_id"))
    return LlamaModel(config, weights, eos, pick_dtype(dtype, weights.dtype, parameters, device), device)


def _read_json(path: Path) -> dict[str, object] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{path.name} is not readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path.name} must hold a JSON object")
    return value


def _token_ids(value: object) -> frozenset[int]:
    values = value if isinstance(value, list | tuple) else [value]
    return frozenset(v for v in values if isinstance(v, int) and not isinstance(v, bool))


def parse_config(raw: Mapping[str, object]) -> LlamaConfig:
    """LlamaConfig from the contents of config.json.

    Raises:
        LoadError: another architecture, or a field is missing or makes no sense.
    """
    if raw.get("model_type") != "llama":
        raise LoadError(f"architecture {raw.get('model_type')!r} is not supported (supported: 'llama')")
    if raw.get("hidden_act", "silu") != "silu":
        raise LoadError(f"hidden_act {raw['hidden_act']!r} is not supported (supported: 'silu')")
    if raw.get("quantization_config") is not None:
        raise LoadError("quantised checkpoints are not supported (supported: float32, bfloat16, float16 files)")

    def size(name: str, default: int | None = None, most: int = 2**31 - 1) -> int:
        value = raw.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise LoadError(f"config.json needs a whole number from 1 to {most} as {name!r}, not {value!r}")
        return value

    def switch(name: str) -> bool:
        value = raw.get(name)
        if value not in (None, True, False):
            raise LoadError(f"config.json needs true or false as {name!r}, not {value!r}")
        return bool(value)

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    if raw.get("head_dim") is None and hidden % heads:
        raise LoadError(
            f"hidden_size ({hidden}) must be a multiple of num_attention_heads ({heads}) without a head_dim"
        )
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}  # transformers' order, where both are there
    if not isinstance(rope, Mapping):
        raise LoadError(f"rope scaling must be an object, not {rope!r}")
    theta = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
    rope = {**rope, "rope_theta": theta, "rope_type": rope.get("rope_type", rope.get("type", "default"))}
    if raw.get("original_max_position_embeddings") is not None:  # transformers lets it overrule the one inside
        rope["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
    if rope.get("partial_rotary_factor", raw.get("partial_rotary_factor")) not in (None, 1, 1.0):
        raise LoadError("rotary embeddings of a part of each head are not supported")
    eps = raw.get("rms_norm_eps", 1e-6)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1:
        raise LoadError(f"config.json needs a number from 0 to 1 as 'rms_norm_eps', not {eps!r}")
    return LlamaConfig(
        vocab_size=size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=size("intermediate_size"),
        num_hidden_layers=size("num_hidden_layers", most=10_000),
        num_attention_heads=heads,
        num_key_value_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", hidden // heads),
        max_position_embeddings=size("max_position_embeddings", 2048),
        rms_norm_eps=float(eps),
        tie_word_embeddings=switch("tie_word_embeddings"),
        attention_bias=switch("attention_bias"),
        mlp_bias=switch("mlp_bias"),
        rope=rope,
    )


def _shards(path: Path) -> list[Path]:
    """The files that the index names; none without an index."""
    index = _read_json(path / "model.safetensors.index.json")
    if index is None:
        return []
    shards = index.get("weight_map")
    if not isinstance(shards, dict):
        raise LoadError("model.safetensors.index.json has no weight_map")
    return [path / name for name in sorted({str(name) for name in shards.values()})]


class _Files:
    """The tensors of all safetensors files of a directory, read when asked for."""

    def __init__(self, path: Path) -> None:
        files = [path / "model.safetensors"]  # goes before an index, as in transformers
        if not files[0].is_file():
            files = _shards(path) or sorted(path.glob("*.safetensors"))
        if not files:
            raise LoadError("it holds no *.safetensors file")
        self._readers: dict[str, safe_open] = {}
        for file in files:
            try:
                reader = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise LoadError(f"{file.name} is missing, cut short or damaged ({error})") from error
            self._readers |= dict.fromkeys(reader.keys(), reader)

    @property
    def dtype(self) -> torch.dtype:
        name = "model.embed_tokens.weight"
        return self.get(name).dtype if name in self._readers else torch.float32

    def shape(self, name: str) -> tuple[int, ...] | None:
        return tuple(self._readers[name].get_slice(name).get_shape()) if name in self._readers else None

    def get(self, name: str) -> Tensor:
        return _checked(name, self._readers[name].get_tensor(name))


class _State:
    """The tensors of a loaded module."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self._tensors.values())).dtype

    def shape(self, name: str) -> tuple[int, ...] | None:
        return tuple(self._tensors[name].shape) if name in self._tensors else None

    def get(self, name: str) -> Tensor:
        return _checked(name, self._tensors[name].detach())


def _checked(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in DTYPES.values():
        raise LoadError(f"tensor {name!r} is stored as {tensor.dtype}; supported are {', '.join(DTYPES)}")
    if tensor.is_meta:
        raise LoadError(f"tensor {name!r} is not in memory (device meta)")
    return tensor
