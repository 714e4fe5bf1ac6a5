"""Any control signal is a processor: a function of (input_ids [B, L], scores [B, V]) that returns scores [B, V].

It is called for every tree node on that node's own history, in no fixed order and also with the draft model's
scores, so it must depend on its arguments alone. transformers' own processors do.
"""

import torch
from transformers import NoRepeatNGramLogitsProcessor

import ouroboros

decoder = ouroboros.load()
newline = decoder.tokenizer.encode("\n")[0]


def short_lines(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The longer the line, the likelier its end."""
    length = (input_ids == newline).flip(-1).long().argmax(-1)
    scores[:, newline] += 0.2 * length
    return scores


for processors in ([], [NoRepeatNGramLogitsProcessor(4)], [short_lines]):
    result = decoder.generate("def fibonacci(n):", max_new_tokens=48, temperature=0.8, seed=1, processors=processors)
    print(result.text, "\n---")
