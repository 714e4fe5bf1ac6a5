"""Classifier-free guidance: what the prompt says beyond a negative prompt is stressed. Exact with every method."""

import ouroboros

decoder = ouroboros.load()
prompt = 'def count(text):\n    """Return the number of vowels in text."""\n'
negative = 'def count(text):\n    """Return text."""\n'

for scale in (1.0, 2.0, 4.0):  # 1 is off
    steered = {"guidance_scale": scale, "negative_prompt": negative if scale != 1 else None}
    result = decoder.generate(prompt, max_new_tokens=40, **steered)
    print(f"--- guidance_scale={scale}, {result.stats.tokens_per_target_forward:.1f} tokens per target forward")
    print(result.text)

# The draft model is guided too, so it still agrees; whatever it says, the tokens are those of plain decoding.
plain = ouroboros.load(method="autoregressive").generate(prompt, max_new_tokens=40, **steered)
assert plain.token_ids == result.token_ids
