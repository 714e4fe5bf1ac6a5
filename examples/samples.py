"""Several samples of one prompt, log-probabilities, and a list of prompts in one call."""

import ouroboros

decoder = ouroboros.load()

# Sample i is drawn with seed + i: each can be had again alone. They share the prefill and the phrases.
samples = decoder.generate("def is_even(n):\n", n=3, temperature=0.9, seed=10, max_new_tokens=24, logprobs=0)
for sample in samples:
    mean = sum(token.logprob for token in sample.logprobs) / len(sample.logprobs)
    print(f"seed {sample.stats.seed}, mean log-probability {mean:.2f}: {sample.text!r}")
best = max(samples, key=lambda sample: sum(token.logprob for token in sample.logprobs))
again = decoder.generate("def is_even(n):\n", temperature=0.9, seed=best.stats.seed, max_new_tokens=24)
assert again.token_ids == best.token_ids

for result in decoder.generate(["import os\n", "class Stack:\n"], max_new_tokens=16):
    print(repr(result.text))
