"""The same call as always, with two more arguments: transformers' generate over our decoding loop."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ouroboros

pair = Path(ouroboros.__file__).parent / "embedded"  # in its place: two models of yours
target = AutoModelForCausalLM.from_pretrained(pair / "target", dtype=torch.float32)
draft = AutoModelForCausalLM.from_pretrained(pair / "draft", dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(pair / "target")

inputs = tokenizer("def fibonacci(n):", return_tensors="pt", return_token_type_ids=False)
plain = target.generate(**inputs, max_new_tokens=48, do_sample=False, pad_token_id=0)
fast = target.generate(
    **inputs,
    max_new_tokens=48,
    do_sample=False,
    pad_token_id=0,
    custom_generate=ouroboros.custom_generate,
    draft_model=draft,
    return_dict_in_generate=True,
)
print(tokenizer.decode(fast.sequences[0]))
print("the same tokens:", fast.sequences.tolist() == plain.tolist())
print(fast.stats[0].target_forwards, "target forwards for", fast.stats[0].new_tokens, "tokens")
