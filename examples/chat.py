"""A conversation: messages go through the tokenizer's chat template; a turn goes on in the caches of the last."""

import ouroboros

decoder = ouroboros.load()  # with an instruction-tuned pair: load(target="DIR or hub id", draft="DIR or hub id")
session = decoder.session()  # holds the KV caches; without one, each call computes its whole prompt
messages = [{"role": "system", "content": "# Helpers for lists."}]

for question in ("def first(items):", "def last(items):", "def middle(items):"):
    messages.append({"role": "user", "content": question})
    with session.stream(messages, max_new_tokens=48, temperature=0.7, seed=1) as answer:
        for chunk in answer:
            print(chunk.text, end="", flush=True)
    messages.append({"role": "assistant", "content": answer.result.text or ""})
    stats = answer.result.stats
    print(f"\n# {stats.cached_tokens} of {stats.prompt_tokens} prompt tokens were in the cache\n")
