"""What a checkpoint holds: config.json, generation_config.json, safetensors files; or a loaded module's tensors.

Everything that cannot be read exactly is refused here, with one line that names it. It knows nothing of what computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ouroboros.errors import LoadError, UnsupportedArchitecture
from ouroboros.files import check_directory, read_json, regular
from ouroboros.models.config import DecoderConfig
from ouroboros.models.families import parse_config
from ouroboros.models.gguf_reader import is_gguf
from ouroboros.models.hub_files import fetch_gguf
from ouroboros.models.tensors import FileTensors, ModuleTensors, Tensors
from ouroboros.models.weights import unknown_tensor

__all__ = ["GROWN", "Checkpoint", "check_code", "module_checkpoint", "read_directory", "resolve"]

GROWN = "ouroboros_grown"  # the field of config.json by which a grown checkpoint says so
OTHERS = ["original/*", "consolidated*"]  # the same weights again, in their makers' own layout


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was read: ``raw``: config.json, which ``config`` is made of; ``grown``, ``stored``: see base.ModelInfo."""

    raw: Mapping[str, object]
    config: DecoderConfig
    eos_token_ids: frozenset[int]
    weights: Tensors
    grown: str | None = None
    stored: str | None = None


def resolve(source: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """The directory of a checkpoint, or a GGUF file; what the hub has is fetched into its own cache.

    Args:
        source: a path; a hub id (``owner/name``); or ``owner/name:WHAT`` for a GGUF file there (see hub_files.py).

    Raises:
        LoadError: neither files that are here nor a hub repository that can be had.
    """
    name = str(source)
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return path
        is_file = path.exists()
        if is_file and (path.suffix.lower() == ".gguf" or is_gguf(path)):
            return path
    except (OSError, RuntimeError) as error:  # a name too long, a home directory of nobody
        raise LoadError(f"no such directory: {name[:80]!r} ({_one_line(error)})") from error
    if is_file:
        kinds = "a directory with config.json and safetensors files, or a GGUF file"
        raise LoadError(f"{name!r} is a file; a model is {kinds}")
    repository, colon, what = name.partition(":")
    parts = repository.split("/")
    if len(parts) != 2 or not all(parts) or name[0] in "./~" or (colon and not what):
        kinds = "a directory, a GGUF file or a hub id like 'owner/name' or 'owner/name:Q4_K_M'"
        raise LoadError(f"no such directory: {name!r} (a model is {kinds})")
    if name.endswith(".gguf") and not colon:
        raise LoadError(f"no such file: {name!r} (of the hub it is 'owner/name:FILE.gguf')")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "tokenizer*", "*.model", "*.jinja"]
    try:
        if colon:
            return fetch_gguf(repository, what, revision, token)
        return Path(
            snapshot_download(name, revision=revision, token=token, allow_patterns=patterns, ignore_patterns=OTHERS)
        )
    except Exception as error:  # the hub's client raises dozens of unrelated types
        kind = "file" if colon else "directory"
        raise LoadError(f"{name!r} is no {kind}, and the hub did not give it: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_directory(path: Path) -> Checkpoint:
    """Opens a checkpoint in Hugging Face layout; no tensor is read yet.

    Raises:
        UnsupportedArchitecture: the native decoder does not compute this model. LoadError: missing or damaged files.
    """
    try:
        if path.is_file():
            raise LoadError("it is a GGUF file, where a directory in Hugging Face layout is needed")
        check_directory(path)
        raw = read_json(path / "config.json")
        if raw is None:
            files = sorted(file.name for file in path.glob("*.gguf"))
            told = f"; a GGUF file is named itself, as {str(path / files[0])!r}" if files else ""
            raise LoadError("it holds no config.json" + told)
        config = parse_config(raw)  # before the weights, which another architecture may keep in other files
        check_code(raw)
        eos = _end_tokens(raw, read_json(path / "generation_config.json") or {})
        if regular(path / "adapter_config.json"):
            raise LoadError("it holds an adapter (adapter_config.json), which is not applied: merge it first")
        weights = FileTensors(path)
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
    config, weights = parse_config(raw), ModuleTensors(module.state_dict())
    eos = _end_tokens(raw, generation.to_dict() if generation is not None else {})
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
    """All ids that config.json and generation_config.json call the end of a text.

    Raises:
        LoadError: something else than token ids.
    """
    found = [file.get("eos_token_id") for file in files]
    values = [v for value in found for v in (value if isinstance(value, list | tuple) else [value]) if v is not None]
    wrong = next((v for v in values if isinstance(v, bool) or not isinstance(v, int)), None)
    if wrong is not None:
        raise LoadError(f"eos_token_id must be a token id or a list of them, not {wrong!r:.40}")
    return frozenset(v for v in values if isinstance(v, int))
