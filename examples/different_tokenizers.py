"""A draft model with another tokenizer than the target's: the call is the same.

The draft made here knows 4,096 of the embedded pair's 8,192 tokens, under numbers of its own.
"""

import json
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

import ouroboros

pair = Path(ouroboros.__file__).parent / "embedded"
draft = Path(tempfile.mkdtemp()) / "draft"  # in its place: a draft model of yours
shutil.copytree(pair / "draft", draft)

kept = [*range(1, 4096), 0]  # old ids in their new order: the end of a text comes last
new = {old: place for place, old in enumerate(kept)}
tokenizer = json.loads((draft / "tokenizer.json").read_text())
model = tokenizer["model"]
model["vocab"] = {token: new[old] for token, old in model["vocab"].items() if old in new}
model["merges"] = [pieces for pieces in model["merges"] if "".join(pieces) in model["vocab"]]
tokenizer["added_tokens"][0]["id"] = new[0]
(draft / "tokenizer.json").write_text(json.dumps(tokenizer))
config = json.loads((draft / "config.json").read_text())
(draft / "config.json").write_text(json.dumps(config | {"vocab_size": len(kept), "eos_token_id": new[0]}))
weights = load_file(draft / "model.safetensors")
weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][kept].contiguous()
save_file(weights, draft / "model.safetensors")

prompt = "def fibonacci(n):"
plain = ouroboros.load(pair / "target", method="autoregressive").generate(prompt, max_new_tokens=48)
for name, path in (("the embedded draft", pair / "draft"), ("another tokenizer", draft)):
    result = ouroboros.load(pair / "target", path).generate(prompt, max_new_tokens=48)
    print(f"{name}: {result.stats.tokens_per_target_forward:.2f} tokens per target forward,", end=" ")
    print("the same tokens as plain decoding:", result.token_ids == plain.token_ids)
