"""llama.cpp as a process of its own, in whatever Python has llama-cpp-python and gguf. It knows nothing of ouroboros.

    python llama_worker.py convert DIRECTORY FILE DTYPE     # a checkpoint's weights as GGUF
    python llama_worker.py serve FILE CONTEXT THREADS DTYPE # answers requests, a JSON object a line each

Both begin with one line on standard output: ``{"ready": {...}}`` with versions, or ``{"error": "why not"}``. A request
is ``{"prompt": [ids], "new_tokens": n, "temperature": t, "seed": s, "end": [ids], "lookup": null or n}``; its answer
``{"token_ids": [...], "prefill_seconds": s, "decode_seconds": s}``, or again an error.

Only the standard library and those two packages (with their numpy): the script runs where this library is not.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LEAST_CONTEXT = 4096
# Model types, llama.cpp's name for them, and whether it turns neighbouring dimensions by their angle, not halves.
ARCHITECTURES = {"llama": ("llama", True), "mistral": ("llama", True), "qwen2": ("qwen2", False)}
NUMBERS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


# ----------------------------------------------------------------------------------------------------------- convert


def convert(directory: Path, file: Path, dtype: str) -> None:
    """Writes a Llama-like checkpoint as GGUF, with a vocabulary whose texts are the ids, as ``<17>``.

    Args:
        dtype: ``bfloat16``, ``float16`` or ``float32``, of all matrices; norms and biases are float32 in every GGUF.

    Raises:
        ValueError: a model that this does not describe to llama.cpp.
    """
    import gguf
    import numpy as np

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    kind, theta = describe(config)
    if dtype not in NUMBERS:
        raise ValueError(f"matrices are written as {', '.join(NUMBERS)}, not as {dtype}")
    architecture, turns_neighbours = ARCHITECTURES[kind]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    number = NUMBERS[dtype]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("rwkv")  # takes any texts, the longest that fits, and has no special tokens of its own
    writer.add_token_list([f"<{token}>" for token in range(config["vocab_size"])])
    writer.add_token_types([gguf.TokenType.NORMAL] * config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if number == "F32" else f"MOSTLY_{number}"])
    places = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config["num_hidden_layers"])
    for name, stored, data in tensors(directory):
        if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.get("tie_word_embeddings")):
            continue
        target = places.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ValueError(f"llama.cpp knows no tensor {name!r} in a {kind} model")
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if part in name and turns_neighbours:
                data = data.reshape(count, 2, -1, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)
        if data.ndim == 1:
            writer.add_tensor(target, as_float32(stored, data))
        elif stored == number:
            values = np.ascontiguousarray(data).view(np.uint8)
            writer.add_tensor(target, values, raw_dtype=gguf.GGMLQuantizationType[number])
        else:
            values = gguf.quants.quantize(as_float32(stored, data), gguf.GGMLQuantizationType[number])
            writer.add_tensor(target, values, raw_dtype=gguf.GGMLQuantizationType[number])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(config: dict[str, Any]) -> tuple[str, float]:
    """Model type and rotary base.

    Raises:
        ValueError: a setting that would have to be told to llama.cpp and is not.
    """
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise ValueError(f"weights are written for {', '.join(ARCHITECTURES)}, not for {kind}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ValueError("rotary embeddings that are scaled are not written")
    if config.get("sliding_window") and config.get("use_sliding_window", kind == "mistral"):
        raise ValueError("sliding-window attention is not written")
    if config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias") or config.get("quantization_config"):
        raise ValueError(
            "another activation than silu, biases of the feed-forward layers and quantised weights are not written"
        )
    return kind, float(config.get("rope_theta") or rope.get("rope_theta") or 10_000.0)


def tensors(directory: Path) -> Iterator[tuple[str, str, Any]]:
    """Name, stored type and array of each tensor, mapped from the safetensors files; bf16 as its 16 bits."""
    import numpy as np

    files = sorted(directory.glob("model*.safetensors"))
    if not files:
        raise ValueError(f"{str(directory)!r} has no safetensors files")
    for path in files:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        size = int.from_bytes(raw[:8].tobytes(), "little")
        for name, entry in json.loads(raw[8 : 8 + size].tobytes()).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in STORED:
                raise ValueError(f"tensor {name!r} is stored as {entry['dtype']}, not as one of {', '.join(STORED)}")
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            yield name, entry["dtype"], raw[begin:end].view(STORED[entry["dtype"]]).reshape(entry["shape"])


def as_float32(stored: str, data: Any) -> Any:
    import numpy as np

    return (data.astype(np.uint32) << 16).view(np.float32) if stored == "BF16" else data.astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- serve


class Engine:
    """A GGUF file behind llama-cpp-python's own ``Llama``, without and with prompt lookup; weights are mapped once."""

    def __init__(self, file: str, longest: int, threads: int, dtype: str) -> None:
        self.file, self.longest, self.threads, self.dtype = file, longest, threads, dtype
        self.open: dict[int | None, Any] = {}

    def llama(self, lookup: int | None, tokens: int) -> Any:
        """The one for this many looked-up tokens, with room for so many positions."""
        import llama_cpp
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        found = self.open.get(lookup)
        if found is not None and found.n_ctx() >= tokens:
            return found
        if tokens > self.longest:
            raise ValueError(f"{tokens} tokens are more than the model's context of {self.longest}")
        if found is not None:
            found.close()
        cache = llama_cpp.GGML_TYPE_F32 if self.dtype == "float32" else None  # None: float16
        self.open[lookup] = llama_cpp.Llama(
            self.file,
            n_ctx=min(self.longest, max(LEAST_CONTEXT, 1 << (tokens - 1).bit_length())),
            n_gpu_layers=-1 if llama_cpp.llama_supports_gpu_offload() else 0,
            n_threads=self.threads,
            n_threads_batch=self.threads,
            logits_all=lookup is not None,  # it fails without when it drafts
            draft_model=None if lookup is None else LlamaPromptLookupDecoding(num_pred_tokens=lookup),
            type_k=cache,
            type_v=cache,
            verbose=False,
        )
        return self.open[lookup]

    def answer(
        self,
        prompt: Sequence[int],
        new_tokens: int,
        temperature: float,
        seed: int,
        end: Sequence[int],
        lookup: int | None,
    ) -> dict[str, Any]:
        """One request. The prompt without its last token is read first, so that decoding brings all new tokens."""
        llama = self.llama(lookup, len(prompt) + new_tokens + (lookup or 0))
        llama.set_seed(seed)
        start = time.perf_counter()
        llama.reset()
        if len(prompt) > 1:
            llama.eval(prompt[:-1])
        before = time.perf_counter()
        tokens: list[int] = []
        for token in llama.generate(prompt, temp=temperature, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0):
            tokens.append(int(token))
            if len(tokens) == new_tokens or token in end:
                break
        done = time.perf_counter()
        return {"token_ids": tokens, "prefill_seconds": before - start, "decode_seconds": done - before}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # libraries print where they like
    os.dup2(2, 1)

    def say(**line: Any) -> None:
        print(json.dumps(line), file=answers, flush=True)

    try:
        command, *rest = sys.argv[1:]
        if command == "convert":
            convert(Path(rest[0]), Path(rest[1]), rest[2])
            say(ready={})
            return
        import llama_cpp

        engine = Engine(rest[0], int(rest[1]), int(rest[2]), rest[3])
        engine.llama(None, 1)
        say(ready={"llama_cpp_python": llama_cpp.__version__})
    except Exception as error:
        say(error=f"{type(error).__name__}: {error}")
        return
    for line in sys.stdin:
        try:
            say(**engine.answer(**json.loads(line)))
        except Exception as error:
            say(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
