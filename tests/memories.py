"""What tests teach a memory, and ask it for. Imports no models: a process that is killed often begins with it."""

from __future__ import annotations

from ouroboros.phrases.harvest import TextHarvest
from ouroboros.phrases.memory import Memory
from ouroboros.tree import Origin

__all__ = ["knows", "learn", "tokens_of"]


def learn(memory: Memory, tokens: list[int]) -> None:
    """A text of at least four tokens, as a request leaves it."""
    TextHarvest(memory.phrases, len(tokens)).learn(tokens)
    text = memory.outputs.start()
    text.add(tokens)
    text.stop()
    memory.predictions.learn(tokens[0], tokens[1], tokens[2:4], [-0.1, -3.0])


def knows(memory: Memory, tokens: list[int]) -> list[bool]:
    """Whether it goes on after the text's first token as the text does: by phrases, outputs, predictions."""
    found = memory.phrases.lookup(tokens[:1], 3, 4).phrases
    speculation = memory.outputs.speculate(tokens[:1], 4, 4, 4, 0.0, 4, Origin.VERIFIED)
    return [
        any(phrase.tokens[0] == tokens[1] for phrase in found),
        speculation is not None,
        memory.predictions.look_up(tokens[0], tokens[1]) is not None,
    ]


def tokens_of(memory: Memory) -> set[int]:
    """All that its phrases and outputs hold."""
    phrases = {token for key, phrase in memory.phrases.items() for token in (*key, *phrase.tokens)}
    return phrases | {token for token in memory.outputs.tokens if token >= 0}
