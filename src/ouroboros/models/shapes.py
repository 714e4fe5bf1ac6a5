"""The sizes that a checkpoint can be grown to (see grow.py): those of published models, and two for a CPU.

It knows numbers only. Published shapes are those of each model's config.json on the hub; only the sizes that cost
arithmetic or memory traffic are taken, not the context or the rotary base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

__all__ = ["PRESETS", "GrownShape"]


@dataclass(frozen=True, slots=True)
class GrownShape:
    """Sizes under their names in config.json.

    Attributes:
        vocab_size: None for the checkpoint's own. tie_word_embeddings: whether the output matrix is the input's; None
            for as it is in the checkpoint.
    """

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int | None = None
    tie_word_embeddings: bool | None = False

    def __str__(self) -> str:
        heads = f"{self.num_attention_heads} heads ({self.num_key_value_heads} for keys) × {self.head_dim}"
        return f"{self.num_hidden_layers} layers × {self.hidden_size}, inner {self.intermediate_size}, {heads}"

    def splits(self) -> Iterator[GrownShape]:
        """This shape, then with twice as many heads of half the size, and so on: matrices and cache stay as large."""
        shape = self
        while True:
            yield shape
            if shape.head_dim % 4:
                return
            shape = replace(
                shape,
                num_attention_heads=2 * shape.num_attention_heads,
                num_key_value_heads=2 * shape.num_key_value_heads,
                head_dim=shape.head_dim // 2,
            )


PRESETS: Mapping[str, GrownShape] = {
    # With the embedded pair's vocabulary of 8,192: 350.8 and 61.9 million parameters, 34 : 6 as Yi's. The ratios of the
    # hidden sizes to the embedded pair's, 1024 : 256 and 640 : 160, are 4, which bf16 scales by without rounding.
    "0.35b": GrownShape(26, 1024, 2816, 16, 16, 64),
    "62m": GrownShape(8, 640, 2496, 20, 20, 32),
    "yi-34b": GrownShape(60, 7168, 20480, 56, 8, 128, vocab_size=64000),
    "yi-6b": GrownShape(32, 4096, 11008, 32, 4, 128, vocab_size=64000),
    "llama2-70b": GrownShape(80, 8192, 28672, 64, 8, 128, vocab_size=32000),
    "llama2-7b": GrownShape(32, 4096, 11008, 32, 32, 128, vocab_size=32000),
    "codellama-34b": GrownShape(48, 8192, 22016, 64, 8, 128, vocab_size=32000),
    "codellama-7b": GrownShape(32, 4096, 11008, 32, 32, 128, vocab_size=32000),
    "deepseek-33b": GrownShape(62, 7168, 19200, 56, 8, 128, vocab_size=32256),
    "deepseek-6.7b": GrownShape(32, 4096, 11008, 32, 32, 128, vocab_size=32256),
}
