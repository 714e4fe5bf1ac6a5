"""Text and token ids: the tokenizer, chats by its template, text that comes in pieces. Knows nothing of models.

Nothing here imports transformers before a tokenizer is read from a directory: the command line must start quickly.
"""

from ouroboros.text.streaming import IncrementalDetokenizer, StopStrings, TextStream
from ouroboros.text.tokenizer import Tokenizer

__all__ = ["IncrementalDetokenizer", "StopStrings", "TextStream", "Tokenizer"]
