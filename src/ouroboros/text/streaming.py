"""Token ids in, showable text out: incremental detokeniser, stop strings.

Invariants: for a byte-level vocabulary the pieces of a stream, joined, are ``decode`` of all its ids; a character is
given out once it is whole and never taken back; no character at or after the beginning of a stop string is given out.
"""

from __future__ import annotations

from collections.abc import Sequence

from ouroboros.text.tokenizer import Tokenizer

__all__ = ["IncrementalDetokenizer", "StopStrings", "TextStream"]

_CONTEXT_TOKENS = 6  # prompt tokens that tell a sentencepiece decoder that the output is no beginning of a text
_WINDOW_TOKENS = 12  # a longer window without a whole character at its end holds bytes that never become one
_REPLACEMENT = "\ufffd"


class IncrementalDetokenizer:
    """Turns a stream of token ids into a stream of text, in constant time a token.

    It decodes a short window: tokens whose text is out already, as context for decoders that strip the space at the
    beginning of a text, then the tokens since. U+FFFD at the end may be the beginning of a character (byte-fallback
    decoders show a whole run of bytes so until its last character is complete), so it waits for more tokens or for
    ``flush``. A special token in the prompt begins a new text: the context does not reach beyond it, and it never
    ends inside a character.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        context = list(prompt_ids[-_CONTEXT_TOKENS:])
        for place in range(len(context) - 1, -1, -1):
            if tokenizer.is_silent(context[place]):
                context = context[place + 1 :]
                break
        while (text := tokenizer.decode(context)).endswith(_REPLACEMENT):
            context = context[1:]
        self._window = context
        self._context = len(context)  # tokens at the beginning of the window whose text is out
        self._shown = len(text)  # characters of the window's text that are out

    def push(self, token_id: int) -> str:
        """The text that is whole now that ``token_id`` has come; often of this token, sometimes none."""
        if self._tokenizer.is_silent(token_id):
            return ""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        ready = len(text.rstrip(_REPLACEMENT))
        piece = text[self._shown : ready]
        self._shown = max(self._shown, ready)
        if ready == len(text) and (piece or len(self._window) > _WINDOW_TOKENS):
            self._window = self._window[self._context :]
            self._context = len(self._window)
            self._shown = len(self._tokenizer.decode(self._window))
        elif len(self._window) > _WINDOW_TOKENS:
            piece += self._cut(text)
        return piece

    def flush(self) -> str:
        """What was held back, as it stands; to be called once, at the end."""
        text = self._tokenizer.decode(self._window)
        piece = text[self._shown :]
        self._shown = max(self._shown, len(text))
        return piece

    def _cut(self, text: str) -> str:
        """Shorten a window of bytes that never become a character, and give out what lies before the cut.

        Where the two parts decode to the whole, the first does not end inside a character that the second goes on
        with. A character has four bytes at most, so that one of the last four token boundaries is such a place.
        """
        for place in range(len(self._window) - 1, len(self._window) - 5, -1):
            head = self._tokenizer.decode(self._window[:place])
            tail = self._tokenizer.decode(self._window[place:])
            if tail and head + tail == text:
                piece = text[self._shown : len(head)]
                self._window = self._window[place:]
                self._context = 0
                self._shown = max(0, self._shown - len(head))
                return piece
        return ""


class StopStrings:
    """Finds where the earliest stop string begins in a text that comes in pieces, and lets nothing behind it out."""

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string would end every text"
        self._stops = tuple(stops)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that can be shown for sure, and whether a stop string is complete; after that push no more."""
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = min((_open_end(text, stop) for stop in self._stops), default=len(text))
        self._held = text[keep:]
        return text[:keep], False

    def flush(self) -> str:
        """What was held back, when the text ends without a stop string."""
        text, self._held = self._held, ""
        return text


def _open_end(text: str, stop: str) -> int:
    """Where the longest end of ``text`` begins that is a beginning of ``stop``, else the length of ``text``."""
    place = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while place >= 0:
        if stop.startswith(text[place:]):
            return place
        place = text.find(stop[0], place + 1)
    return len(text)


class TextStream:
    """Token ids in, showable text out, until a stop string is complete. Without a tokenizer every text is empty."""

    def __init__(self, tokenizer: Tokenizer | None, prompt_ids: Sequence[int], stops: Sequence[str]) -> None:
        assert tokenizer is not None or not stops, "stop strings need a tokenizer; the caller refuses them"
        self._detokenizer = None if tokenizer is None else IncrementalDetokenizer(tokenizer, prompt_ids)
        self._stops = StopStrings(stops)
        self._stopped = False

    def push(self, token_id: int) -> tuple[str, bool]:
        """The text that this token lets out, and whether it completes a stop string."""
        assert not self._stopped, "a token behind the stop string"
        if self._detokenizer is None:
            return "", False
        text, self._stopped = self._stops.push(self._detokenizer.push(token_id))
        return text, self._stopped

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self._stopped

    def finish(self) -> str:
        """What was held back, to be called once, at the end; empty behind a stop string."""
        if self._detokenizer is None or self._stopped:
            return ""
        text, self._stopped = self._stops.push(self._detokenizer.flush())
        return text if self._stopped else text + self._stops.flush()
