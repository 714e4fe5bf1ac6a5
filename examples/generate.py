"""Load the embedded pair, continue a prompt, stream another one."""

import ouroboros

with ouroboros.load() as decoder:
    result = decoder.generate("def fibonacci(n):", max_new_tokens=48, temperature=0.8, seed=1)
    print(result.text)
    print(f"{result.stats.tokens_per_target_forward:.2f} tokens per target forward")
    with decoder.stream("def is_prime(n):", max_new_tokens=48) as stream:
        for chunk in stream:
            print(chunk.text, end="", flush=True)
    print(stream.result.finish_reason)
