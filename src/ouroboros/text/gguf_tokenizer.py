"""The tokenizer that a GGUF file describes, as one of the ``tokenizers`` library.

``gpt2`` vocabularies are byte-level BPE, whose text is split by a pattern that the file only names. ``llama``
vocabularies are SentencePiece's: pieces with scores, merged best first, bytes for what has no piece. What a token is
(control, added, unused) the file says, and so which are found in text before it is split. It knows nothing of models.

The patterns are those of the models' own tokenizer.json files, under llama.cpp's names (llama-vocab.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ouroboros.errors import LoadError

__all__ = ["build_tokenizer", "chat_template", "special_ids", "special_tokens"]

Metadata = Mapping[str, Any]

NORMAL, UNKNOWN, CONTROL, ADDED, UNUSED, BYTE = range(1, 7)
SPACE = "▁"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN2 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}" + _TAIL
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}?"
    r"|\p{N}{1,3}" + _TAIL
)
DIGITS = r"\p{N}"
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", DIGITS)
# Each pattern splits what the one before it left. ``whole``: a piece that is a token is one, whatever merges there are.
PATTERNS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "olmo", "jais", "mpt", "stablelm"), (GPT2,)),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "dbrx", "smaug-bpe"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "kormo"), (QWEN2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (DIGITS, GPT2)),
    **dict.fromkeys(("gpt-4o", "llama4"), (GPT4O,)),
    "tekken": (TEKKEN,),
    "deepseek-coder": DEEPSEEK_CODER,
}
WHOLE = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken")
ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def build_tokenizer(metadata: Metadata) -> Tokenizer:
    """
    Raises:
        LoadError: a kind of vocabulary that is not read, or one whose parts contradict each other.
    """
    tokens, types = _vocabulary(metadata)
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if kind == "gpt2":
        tokenizer = _byte_level(metadata, tokens, types, pre)
        begins = pre in WHOLE
    elif kind == "llama":
        tokenizer = _sentencepiece(metadata, tokens)
        begins = True
    else:
        raise LoadError(f"tokenizer.ggml.model {kind!r:.40} is not supported (supported: 'gpt2', 'llama')")
    vocabulary = tokenizer.get_vocab()
    for type_, special in ((CONTROL, True), (ADDED, False)):
        found = [tokens[i] for i in np.flatnonzero(types == type_).tolist()]
        added = [AddedToken(t, normalized=False, special=special) for t in found if t and t in vocabulary]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    ids = special_ids(metadata)
    first = [ids["bos_token"]] if metadata.get("tokenizer.ggml.add_bos_token", begins) and "bos_token" in ids else []
    last = [ids["eos_token"]] if metadata.get("tokenizer.ggml.add_eos_token", False) and "eos_token" in ids else []
    _surround(tokenizer, [tokens[i] for i in first], [tokens[i] for i in last])
    return tokenizer


def special_ids(metadata: Metadata) -> dict[str, int]:
    """Ids by transformers' names of what they are for.

    Raises:
        LoadError: an id that is none.
    """
    count = len(_vocabulary(metadata)[0])
    found = {}
    for name, key in ROLES.items():
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
            raise LoadError(f"tokenizer.ggml.{key}_token_id must be a token id below {count}, not {value!r:.40}")
        found[name] = value
    return found


def chat_template(metadata: Metadata) -> str | dict[str, str] | None:
    """The template, or all by their names where there are several; None where there is none.

    Raises:
        LoadError: a template that is no text.
    """
    first = "tokenizer.chat_template"
    found = {"default": metadata[first]} if first in metadata else {}
    found |= {key[len(first) + 1 :]: text for key, text in metadata.items() if key.startswith(first + ".")}
    wrong = next((name for name, text in found.items() if not isinstance(text, str)), None)
    if wrong is not None:
        raise LoadError(f"the chat template {wrong!r:.40} must be a text")
    return found or None if found.keys() != {"default"} else found["default"]


def special_tokens(metadata: Metadata) -> dict[str, str]:
    """As ``special_ids``, the tokens themselves."""
    tokens = _vocabulary(metadata)[0]
    return {name: tokens[index] for name, index in special_ids(metadata).items()}


def _vocabulary(metadata: Metadata) -> tuple[list[str], Any]:
    """Tokens by id, and their types."""
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not tokens:
        raise LoadError(f"tokenizer.ggml.tokens must be a list of texts, not {tokens!r:.40}")
    if types is None:
        types = np.full(len(tokens), NORMAL)
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise LoadError(f"tokenizer.ggml.token_type must have a number for each of {len(tokens)} tokens")
    return tokens, types


def _byte_level(metadata: Metadata, tokens: list[str], types: Any, pre: object) -> Tokenizer:
    if not isinstance(pre, str) or pre not in PATTERNS:
        raise LoadError(f"tokenizer.ggml.pre {pre!r:.40} is not supported (supported: {', '.join(PATTERNS)})")
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise LoadError(f"tokenizer.ggml.merges must be a list of texts, not {merges!r:.40}")
    # Rows that only fill up the matrix have names that mean nothing.
    unused = {i for i in np.flatnonzero(types == UNUSED).tolist() if tokens[i].startswith("[PAD")}
    vocabulary = {token: i for i, token in enumerate(tokens) if i not in unused}
    pairs = []
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not space or left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise LoadError(f"tokenizer.ggml.merges holds {merge!r:.60}, whose parts and whole are no tokens")
        pairs.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=pre in WHOLE))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS[pre]]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Metadata, tokens: list[str]) -> Tokenizer:
    architecture = str(metadata.get("general.architecture"))
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokens) or not np.isfinite(scores).all():
        raise LoadError(f"tokenizer.ggml.scores must have a number for each of {len(tokens)} tokens")
    gemma = architecture.startswith("gemma")
    if gemma:
        # Its files hold runs of spaces as spaces, and scores that do not follow the order of merges, as positions do.
        tokens = [SPACE * len(token) if len(token) > 1 and not token.strip(" ") else token for token in tokens]
        scores = -np.arange(len(tokens))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    unknown = special_ids(metadata).get("unk_token")
    if unknown is None and any(f"<0x{byte:02X}>" not in vocabulary for byte in range(256)):
        raise LoadError("its vocabulary has neither all bytes nor an unknown token: it cannot encode every text")
    model = models.BPE(
        vocabulary,
        _merges(vocabulary, tokens, scores.tolist()),
        fuse_unk=True,
        byte_fallback=True,
        unk_token=None if unknown is None else tokens[unknown],
    )
    tokenizer = Tokenizer(model)
    prefixed = not gemma and metadata.get("tokenizer.ggml.add_space_prefix", True)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if gemma:
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif architecture == "phi3" and prefixed:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    else:
        scheme = "first" if prefixed else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    if prefixed:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges(vocabulary: Mapping[str, int], tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two, best tokens first; of one token's, those with the longest first part."""
    found = []
    for token in tokens:
        rank = -scores[vocabulary[token]]
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((rank, -cut, -len(right), left, right))
    found.sort(key=lambda entry: entry[:3])
    return [(left, right) for *_, left, right in found]


def _surround(tokenizer: Tokenizer, first: Sequence[str], last: Sequence[str]) -> None:
    """What stands before and behind each text."""
    if not first and not last:
        return
    special = [(token, tokenizer.token_to_id(token)) for token in {*first, *last}]
    single = [*first, "$A", *last]
    pair = [*single, *(f"{part}:1" for part in (*first, "$B", *last))]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
