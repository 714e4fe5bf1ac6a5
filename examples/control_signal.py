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
    scores[:, newline] += length
    return scores


prompt = 'class Stack:\n    """A stack."""\n'
texts = []
signals = {"none": [], "no 3-gram twice": [NoRepeatNGramLogitsProcessor(3)], "short lines": [short_lines]}
for name, processors in signals.items():
    result = decoder.generate(prompt, max_new_tokens=60, temperature=0.8, seed=2, processors=processors)
    texts.append(result.text)
    print(f"--- {name}\n{result.text}")
assert len(set(texts)) == 3
