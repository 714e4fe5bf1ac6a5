"""Keep phrases from one process to the next: a pool in a file, bound to the model's vocabulary."""

import tempfile
from pathlib import Path

import ouroboros

path = Path(tempfile.mkdtemp()) / "phrases.pool"
for run in ("cold", "warm"):
    with ouroboros.load(pool=path) as decoder:  # read if it exists, saved at the end
        stats = decoder.generate("class Stack:\n    def push(", max_new_tokens=64, ignore_eos=True).stats
    print(f"{run}: {stats.target_forwards} target forwards, {path.stat().st_size} bytes of phrases")
