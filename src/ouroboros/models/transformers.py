"""TransformersModel: any causal language model of transformers behind the protocol of base.py.

All contact with transformers' caches, masks and configs is in this file. Trees run on explicit masks and positions,
over a cache whose layers keep all rows (also those behind a sliding window: the masks hide them), so that rows can be
dropped and moved. Whether a model computes trees, chains only or nothing that can be rolled back is found out when it
is loaded, by trying: its answers through the cache must be those of its own forward without one. It knows nothing of
decoding, nor of any single architecture.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as hf_logging

from ouroboros.errors import InputError, LoadError
from ouroboros.models.base import ModelInfo, ScoreRequest, Slot
from ouroboros.models.loading import pick_dtype
from ouroboros.tree import Origin, TokenTree

__all__ = ["TransformersModel", "load_pretrained", "wrap_module"]

PREFILL_CHUNK = 512
STEP = 256  # rows by which a layer's buffer grows at least
UNLIMITED = 2**31 - 1  # max_positions of a model that has none
ROW_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}  # hold one row a token, and nothing else
NO_LAYERS = {"mlp", "moe"}  # hold nothing
MASKED = {"eager", "sdpa"}  # implementations of attention that take any additive mask
WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}  # kind → config's name
# What two ways of computing the same logits may differ by, in parts of the logits' scale. In the short types a mixture
# of experts may route single rows otherwise: there the median counts.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def load_pretrained(
    path: Path, dtype: str | torch.dtype, device: torch.device, device_map: Any = None
) -> TransformersModel:
    """Loads a checkpoint with AutoModelForCausalLM; code that comes with it is not run.

    Args:
        device_map: as transformers takes it; None puts the whole model on ``device``.

    Raises:
        LoadError: no causal language model, not loadable, or not to be rolled back. InputError: unknown dtype.
    """
    if dtype != "auto":
        dtype = pick_dtype(dtype, torch.float32, 0, device)
    try:
        raw, _ = _call(transformers.PretrainedConfig.get_config_dict, path)
        _check_kind(raw.get("model_type"), bool(raw.get("is_encoder_decoder")), "auto_map" in raw)
        config = _call(transformers.AutoConfig.from_pretrained, path, trust_remote_code=False)
        _check_config(config)
        module, report = _call(
            transformers.AutoModelForCausalLM.from_pretrained,
            path,
            config=config,
            dtype=dtype,
            device_map=device_map,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are in the report
            output_loading_info=True,
        )
        absent = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
        if absent:  # transformers fills them with random numbers
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise LoadError(f"the checkpoint lacks the tensor {absent[0]!r}{more}, or holds it in another shape")
        if getattr(config, "quantization_config", None) is None:
            parameters = sum(p.numel() for p in module.parameters())
            module.to(pick_dtype(dtype, module.dtype, parameters, device))
        if device_map is None and getattr(module, "hf_device_map", None) is None:
            module.to(device)
        return TransformersModel(module)
    except LoadError as error:
        raise LoadError(f"cannot load {str(path)!r}: {error}") from error


def wrap_module(module: torch.nn.Module, dtype: str | torch.dtype, device: str) -> TransformersModel:
    """Serves a loaded transformers model as it is, where it is; puts it into evaluation mode.

    Raises:
        LoadError: no causal language model of transformers, or not to be rolled back.
        InputError: another dtype or device than the model has.
    """
    if not isinstance(module, transformers.PreTrainedModel):
        raise LoadError(f"a loaded model must be a transformers model, not {type(module).__name__}")
    name = type(module).__name__
    has = str(module.dtype).removeprefix("torch.")
    if dtype != "auto" and str(dtype).removeprefix("torch.") != has:
        raise InputError(f"dtype of the loaded {name} is {has}; dtype must be auto or that, not {dtype!r}")
    if device != "auto" and torch.device(device) != module.device:
        raise InputError(f"the loaded {name} is on {module.device}; device must be auto or that, not {device!r}")
    try:
        return TransformersModel(module)
    except LoadError as error:
        raise LoadError(f"cannot use the loaded {name}: {error}") from error


class TransformersModel:
    """A loaded transformers model (see base.CausalModel). ``info.trees`` says whether it takes trees or chains only.

    Args:
        module: a causal language model; the adapter puts it into evaluation mode and calls its ``forward`` alone.

    Raises:
        LoadError: its answers depend on later tokens, or on a state that cannot be rolled back.
    """

    def __init__(self, module: transformers.PreTrainedModel) -> None:
        _check_config(module.config)
        _check_module(module)
        module.eval()
        self._module = module
        self._config = module.config.get_text_config(decoder=True)
        embedding = module.get_input_embeddings().weight
        assert isinstance(embedding, Tensor)
        if embedding.is_meta and getattr(module, "hf_device_map", None) is None:
            raise LoadError("its weights are not in memory (device meta)")
        self._device: torch.device = torch.device("cpu") if embedding.is_meta else embedding.device
        self._embeddings = embedding.shape[0]
        parameters = inspect.signature(module.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._takes_rows = "logits_to_keep" in parameters
        self._trees = True  # until trying says otherwise
        self._kinds: tuple[str, ...] | None = None  # of masks, by which a tree is passed; None: as one tensor
        self._max_positions = _max_positions(self._config)
        vocab_size = _probe_chains(self)
        self._trees = self._find_trees()
        self.info = ModelInfo(
            backend="transformers",
            vocab_size=vocab_size,
            max_positions=self._max_positions,
            eos_token_ids=_eos_token_ids(module),
            parameters=sum(p.numel() for p in module.parameters()),
            dtype=str(module.dtype).removeprefix("torch."),
            device=str(self._device),
            trees=self._trees,
        )

    def open(self) -> _Slot:
        return _Slot()

    @torch.inference_mode()
    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        own = _own(slot)
        assert own.pending == 0, "tokens cannot be committed behind pending nodes"
        for start in range(0, len(token_ids), PREFILL_CHUNK):
            chunk = token_ids[start : start + PREFILL_CHUNK]
            self._forward(own, chunk, range(own.length, own.length + len(chunk)), None, [len(chunk) - 1])
            own.advance(len(chunk), 0)

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> Tensor:
        slot, tree, catch_up = _own(request.slot), request.tree, request.catch_up
        pending = slot.pending
        assert not catch_up or pending == 0, "catch-up tokens cannot follow pending nodes"
        assert len(tree) > pending, "a forward needs new nodes"
        root = slot.length + len(catch_up)
        nodes = [root + depth for depth in tree.depths]
        positions = [*range(slot.length, root), *nodes[pending:]]
        rows = range(pending, len(tree)) if request.rows is None else request.rows
        mask = None
        if any(parent != node - 1 for node, parent in enumerate(tree.parents)):
            assert self._trees, "this model takes chains only"
            mask = self._masks(tree, pending, len(catch_up), [*range(root), *nodes])
        tokens = [*catch_up, *tree.tokens[pending:]]
        logits = self._forward(slot, tokens, positions, mask, [len(catch_up) + row - pending for row in rows])
        slot.advance(len(catch_up), len(tree) - pending)
        return logits

    def _forward(
        self, slot: _Slot, tokens: Sequence[int], positions: Sequence[int], mask: Any, rows: Sequence[int]
    ) -> Tensor:
        """Logits [rows, vocabulary] behind these new rows. Without a mask they are a chain, and the model masks it."""
        assert max(positions) < self._max_positions, f"position {max(positions)} is beyond the model's context"
        # Ids beyond the matrix can only reach a draft model with fewer padding rows than its target.
        ids = torch.tensor([list(tokens)], device=self._device).clamp_(max=self._embeddings - 1)
        arguments: dict[str, Any] = {"input_ids": ids, "past_key_values": slot.cache, "attention_mask": mask}
        if self._takes_positions:
            arguments["position_ids"] = torch.tensor([list(positions)], device=self._device)
        if self._takes_rows:
            arguments["logits_to_keep"] = torch.tensor(list(rows), dtype=torch.long)  # on a CPU it indexes any device
        logits: Tensor = self._module(**arguments, use_cache=True, return_dict=True).logits[0]
        return logits if self._takes_rows else logits[list(rows)]

    def _masks(self, tree: TokenTree, pending: int, catch_up: int, positions: Sequence[int]) -> Any:
        """Additive masks [1, 1, N, T] of the new rows (catch-up tokens, then nodes) over all rows."""
        total, root = len(positions), len(positions) - len(tree)
        first = root + pending - catch_up  # the first new row
        visible = torch.ones((total - first, total), dtype=torch.bool).tril(first)
        visible[catch_up:, root:] = torch.from_numpy(tree.ancestor_mask(pending))
        keys, queries = torch.tensor(positions), torch.tensor(positions[first:])[:, None]

        def additive(kind: str) -> Tensor:
            seen = visible
            if kind != "full_attention":
                size = getattr(self._config, WINDOWS[kind])
                near = keys > queries - size if kind == "sliding_attention" else keys // size == queries // size
                seen = visible & near
            mask = torch.zeros(visible.shape, dtype=self._module.dtype)
            return mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)[None, None].to(self._device)

        if self._kinds is None:
            return additive(_kinds(self._config)[0])
        return {kind: additive(kind) for kind in self._kinds}

    def _find_trees(self) -> bool:
        """Whether trees give what their paths give; settles how the masks are passed."""
        if not self._takes_positions or _unknown_window(self._config):
            return False
        if self._config._attn_implementation not in MASKED:  # other kernels do not even fail cleanly
            return False
        kinds = _kinds(self._config)
        forms = [kinds, None] if len(kinds) == 1 else [kinds]
        for form in forms:
            self._kinds = form
            try:
                if _probe_trees(self):
                    return True
            except Exception:  # whatever an architecture raises on masks that it does not know
                continue
        return False


class _Rows(DynamicLayer):
    """Keys and values of one layer, [1, heads, rows, size], in buffers that are allocated ahead and grow in steps."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: list[Tensor] = []
        self._used = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._buffers = [states[:, :, :0] for states in (key_states, value_states)]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends rows. Returns the keys and values of all rows."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._used, self._used + key_states.shape[2]
        if end > self._buffers[0].shape[2]:
            # A quarter more than is there keeps the copies few for long texts, a step for short ones.
            capacity = -(-max(end, start + start // 4) // STEP) * STEP
            self._buffers = [_grown(buffer, start, capacity) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        return self._show(end)

    def keep(self, base: int, path: Sequence[int]) -> None:
        """Of the rows from ``base`` on keeps those that ``path`` names, in this order, and drops the others."""
        moved = next((i for i, node in enumerate(path) if i != node), len(path))  # those before lie where they belong
        if moved < len(path):
            index = base + torch.tensor(path[moved:], device=self._buffers[0].device)
            for buffer in self._buffers:
                buffer[:, :, base + moved : base + len(path)] = buffer.index_select(2, index)
        self._show(base + len(path))

    def cut(self, rows: int) -> None:
        self._show(rows)

    def get_seq_length(self) -> int:
        return self._used

    def _show(self, rows: int) -> tuple[Tensor, Tensor]:
        self._used = rows
        keys, values = (buffer[:, :, :rows] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values


def _grown(buffer: Tensor, used: int, capacity: int) -> Tensor:
    grown = buffer.new_empty((*buffer.shape[:2], capacity, buffer.shape[3]))
    grown[:, :, :used] = buffer[:, :, :used]
    return grown


class _Slot:
    """One sequence's cache (see base.Slot). ``cache`` is what the model's forward is given."""

    def __init__(self) -> None:
        self.cache = Cache(layer_class_to_replicate=_Rows)
        self.length = 0
        self.pending = 0

    @property
    def layers(self) -> list[_Rows]:
        return [layer for layer in self.cache.layers if isinstance(layer, _Rows) and layer.is_initialized]

    def advance(self, committed: int, pending: int) -> None:
        """Counts rows that a forward has appended."""
        self.length += committed
        self.pending += pending

    @torch.inference_mode()
    def commit(self, path: Sequence[int]) -> None:
        assert all(a < b for a, b in pairwise(path)) and (not path or path[-1] < self.pending)
        for layer in self.layers:
            layer.keep(self.length, path)
        self.length += len(path)
        self.pending = 0

    def truncate(self, pending: int) -> None:
        assert 0 <= pending <= self.pending
        self._cut(self.length, pending)

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self.length, f"cannot rewind from {self.length} to {length}"
        self._cut(length, 0)

    def _cut(self, length: int, pending: int) -> None:
        for layer in self.layers:
            layer.cut(length + pending)
        self.length, self.pending = length, pending


def _own(slot: Slot) -> _Slot:
    assert isinstance(slot, _Slot), "a slot belongs to the model that opened it"
    return slot


# ------------------------------------------------------------------------------------------- what the config says


def _check_kind(kind: object, encoder: bool, has_code: bool = False) -> None:
    if encoder:
        raise LoadError(f"architecture {kind!r} is an encoder and a decoder; only decoders can be used")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        code = " (it comes with code of its own, which is not run)" if has_code else ""
        version = transformers.__version__
        raise LoadError(f"architecture {kind!r} is no causal language model of transformers {version}{code}")


def _check_config(config: transformers.PretrainedConfig) -> None:
    """Refuses what is no causal language model, before any weight is read."""
    kind = config.model_type
    _check_kind(kind, config.is_encoder_decoder)
    text = config.get_text_config(decoder=True)
    others = sorted(set(getattr(text, "layer_types", None) or ()) - ROW_LAYERS - NO_LAYERS)
    if others:
        layers = f"architecture {kind!r} has layers of type {others[0]!r}"
        raise LoadError(f"{layers}: their state is no key-value cache and cannot be rolled back")


def _check_module(module: transformers.PreTrainedModel) -> None:
    if getattr(module, "_is_stateful", False):
        kind = module.config.model_type
        raise LoadError(f"architecture {kind!r} keeps a recurrent state, which cannot be rolled back")
    if module.get_output_embeddings() is None:
        raise LoadError(f"{type(module).__name__} has no output matrix; a causal language model is needed")


def _kinds(config: transformers.PretrainedConfig) -> tuple[str, ...]:
    """The kinds of attention masks that the layers need."""
    types = getattr(config, "layer_types", None)
    if types:
        return tuple(sorted(set(types) - NO_LAYERS))
    windows = [kind for kind, name in WINDOWS.items() if getattr(config, name, None) is not None]
    return tuple(windows[:1]) or ("full_attention",)


def _unknown_window(config: transformers.PretrainedConfig) -> bool:
    """Whether the config names a window of which nothing is known: past it a tree could differ from its paths."""
    known = {*WINDOWS.values(), "use_sliding_window", "max_window_layers", "sliding_window_pattern"}
    names = [name for name, value in config.to_dict().items() if "window" in name and value]
    return any(name.lstrip("_") not in known for name in names)


def _max_positions(config: transformers.PretrainedConfig) -> int:
    """The positions that the model has, or for which its angles do not depend on the length of the text."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
    sizes = [value for name in names if isinstance(value := getattr(config, name, None), int) and value > 0]
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *ropes.values()):
        if isinstance(rope, Mapping) and rope.get("rope_type") == "longrope":
            original = rope.get("original_max_position_embeddings")
            sizes += [original] if isinstance(original, int) else []
    return min(sizes, default=UNLIMITED)


def _eos_token_ids(module: transformers.PreTrainedModel) -> frozenset[int]:
    found: set[int] = set()
    for config in (module.config, module.config.get_text_config(decoder=True), module.generation_config):
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    return frozenset(found)


# ------------------------------------------------------------------------------------------- what the model does

PROMPT, DEPTH = 8, 6  # of the test's texts
SHARED = (0, 3, 1, 4)  # how many tokens below the root each of them shares with the one before it
NARROW = 5  # windows are as narrow as this during the test, so that its texts reach past them


@torch.inference_mode()
def _probe_chains(model: TransformersModel) -> int:
    """Tries chains with roll-back against forwards without cache. Returns the number of logits.

    Raises:
        LoadError: they differ.
    """
    if model._max_positions < PROMPT + DEPTH:
        raise LoadError(f"its context of {model._max_positions} tokens is too short (at least {PROMPT + DEPTH})")
    kind = model._module.config.model_type
    try:
        with _narrowed(model._config):
            texts = _texts(model)
            expected = _plain(model, texts)
            # Two texts that begin alike: a causal model answers alike, whatever comes later.
            if not _agree(expected[2, : PROMPT + 1], expected[3, : PROMPT + 1]):
                raise LoadError(f"architecture {kind!r} is not causal: its answers depend on later tokens")
            slot = model.open()
            model.prefill(slot, texts[0][: PROMPT - 1])
            got = [model.score([ScoreRequest(slot, _chain(texts[0][PROMPT - 1 :]))])[0]]
            slot.commit(range(SHARED[1] + 1))
            got.append(model.score([ScoreRequest(slot, _chain(texts[1][PROMPT + SHARED[1] :]))])[0])
            slot.rewind(2)
            tree = _chain(texts[3][PROMPT - 1 :])
            got.append(model.score([ScoreRequest(slot, tree, catch_up=texts[3][2 : PROMPT - 1])])[0])
            held = {layer.get_seq_length() for layer in slot.layers}
    except LoadError:
        raise
    except Exception as error:  # architectures raise whatever they like on a cache that is not of their kind
        raise LoadError(f"architecture {kind!r} cannot be run on a cache of rows: {_one_line(error)}") from error
    rows = [expected[0, PROMPT - 1 :], expected[1, PROMPT + SHARED[1] :], expected[3, PROMPT - 1 :]]
    if held != {PROMPT + DEPTH}:
        raise LoadError(f"architecture {kind!r} keeps no key-value cache that could be rolled back")
    if not _agree(torch.cat(got), torch.cat(rows)):
        raise LoadError(f"architecture {kind!r} answers otherwise after its cache is rolled back")
    return expected.shape[-1]


@torch.inference_mode()
def _probe_trees(model: TransformersModel) -> bool:
    """Tries a tree that grows while it is pending, and another below a part of it that is kept."""
    with _narrowed(model._config):
        texts = _texts(model)
        expected = _plain(model, texts)
        slot = model.open()
        model.prefill(slot, texts[0][: PROMPT - 3])
        tree, got, rows = TokenTree(texts[0][PROMPT - 1]), [], []
        ends: list[int] = []
        for half in (texts[:2], texts[2:]):
            ends += [tree.extend(0, text[PROMPT:], Origin.DRAFT) for text in half]
            catch_up = texts[0][slot.length : PROMPT - 1] if slot.pending == 0 else []
            got.append(model.score([ScoreRequest(slot, tree, catch_up=catch_up)])[0])
        paths = [tree.path(end) for end in ends]
        for node in range(len(tree)):
            text = next(i for i, path in enumerate(paths) if node in path)
            rows.append(expected[text, PROMPT - 1 + tree.depths[node]])
        kept = SHARED[3] + 1
        slot.commit(paths[3][:kept])
        below = TokenTree(texts[3][PROMPT + SHARED[3]])
        for text in (2, 0, 3):  # the first two do not begin like this, and stand in the way
            below.extend(0, texts[text][PROMPT + kept :], Origin.DRAFT)
        wanted = below.walk(texts[3][PROMPT + kept :])
        got.append(model.score([ScoreRequest(slot, below, rows=wanted)])[0])
        rows += list(expected[3, PROMPT + SHARED[3] :])
        found, right = torch.cat(got), torch.stack(rows)
        # Each node sees all before it, for comparison: where that changes little, little may be wrong.
        slot = model.open()
        model.prefill(slot, texts[0][: PROMPT - 1])
        positions = [PROMPT - 1 + depth for depth in tree.depths]
        wrong = model._forward(slot, tree.tokens, positions, None, range(len(tree)))
        error, signal = _errors(found, right).median(), _errors(wrong, right[: len(tree)]).median()
        return _agree(found, right) and bool(error <= signal / 5)


def _texts(model: TransformersModel) -> list[list[int]]:
    """Random texts of one length that share a prompt, and with the one before them a part of what follows."""
    source = torch.Generator().manual_seed(0)
    size = PROMPT + DEPTH
    tokens = torch.randperm(model._embeddings, generator=source)[: size * len(SHARED)].tolist()
    tokens = (tokens * size)[: size * len(SHARED)]
    texts = [tokens[:size]]
    for number, shared in enumerate(SHARED[1:], start=1):
        own = tokens[number * size : (number + 1) * size]
        texts.append(texts[-1][: PROMPT + shared] + own[PROMPT + shared :])
    return texts


def _chain(tokens: Sequence[int]) -> TokenTree:
    tree = TokenTree(tokens[0])
    tree.extend(0, tokens[1:], Origin.DRAFT)
    return tree


def _plain(model: TransformersModel, texts: Sequence[Sequence[int]]) -> Tensor:
    """Logits [texts, tokens, vocabulary] of the model's own forward without a cache."""
    logits: Tensor = model._module(torch.tensor(texts, device=model._device), use_cache=False, return_dict=True).logits
    return logits


def _errors(found: Tensor, expected: Tensor) -> Tensor:
    """Of each row the largest difference, in parts of the logits' scale."""
    found, expected = found.double(), expected.double()
    scale = (expected - expected.mean(-1, keepdim=True)).abs().amax()
    return (found - expected).abs().amax(-1) / scale


def _agree(found: Tensor, expected: Tensor) -> bool:
    errors = _errors(found, expected)
    worst = errors.median() if expected.dtype in (torch.float16, torch.bfloat16) else errors.amax()
    return bool(worst <= TOLERANCE.get(expected.dtype, 0.0))


@contextmanager
def _narrowed(config: transformers.PretrainedConfig) -> Iterator[None]:
    """For the time of a test the config's windows are narrow; afterwards they are as they were."""
    windows = {name: value for name in WINDOWS.values() if isinstance(value := getattr(config, name, None), int)}
    try:
        for name, value in windows.items():
            setattr(config, name, min(value, NARROW))
        yield
    finally:
        for name, value in windows.items():
            setattr(config, name, value)


def _call(function: Any, *args: Any, **settings: Any) -> Any:
    """Calls transformers, which writes nothing to the terminal meanwhile."""
    shows, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        return function(*args, **settings)
    except Exception as error:  # transformers raises dozens of unrelated types
        raise LoadError(_one_line(error)) from error
    finally:
        hf_logging.set_verbosity(level)
        if shows:
            hf_logging.enable_progress_bar()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
