"""Is it lossless here? Plain and accelerated decoding on the same prompts, compared token by token.

The same on the command line: ouroboros audit --target DIR --draft DIR --dtype bfloat16
"""

import ouroboros
from ouroboros import SamplingParams
from ouroboros.bench.audit import audit

loaded = ouroboros.load(dtype="bfloat16")  # where rounding may part near-ties; in float32 all is identical


def load(method: str) -> ouroboros.Decoder:
    draft = loaded.draft if method in ("speculative", "ouroboros") else None
    return ouroboros.load(loaded.target, draft, tokenizer=loaded.tokenizer, method=method)


report = audit(load, ["def fibonacci(n):\n", "import sys\n"], SamplingParams(max_new_tokens=32), lambda step: None)
for method in report.methods:
    print(method.method, method.verdict, method.counts)
assert report.verdict != "defect"
