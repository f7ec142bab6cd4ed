"""Token ids to text as they appear, and its end before a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from hfpipe.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


class IncrementalDecoder:
    """Token ids in, text out as soon as it is final: joined, what `decode` makes of all ids after the prompt's.

    It decodes each token after the one before it, and looks back no further than a UTF-8 sequence is long (4 bytes, so
    at most 3 tokens wait for a last one). Special tokens have no text. Bytes that never become a character are shown as
    U+FFFD once that is certain.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        last = next((token_id for token_id in reversed(prompt_ids) if tokenizer.has_text(token_id)), None)
        # The last token with text: a word that follows another keeps its space, the first of a text may not.
        self._window: tuple[int, ...] = () if last is None else (last,)
        # Whether the window's text ends in a U+FFFD that is not shown, since a next token may complete it.
        self._held = False
        # Bytes are joined here: a tokenizer's own decoder spoils a whole run of them where one is invalid.
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        # Of a sequence that ends unfinished, each byte is one U+FFFD, as tokenizers' ByteFallback shows it.
        self._unfinished = 0

    def feed(self, ids: Iterable[int], last: bool = False) -> str:
        """The text that became final with `ids`; after the `last` ones, a character that is incomplete is U+FFFD."""
        shown = ""
        for token_id in ids:
            if not self._tokenizer.has_text(token_id):
                continue
            value = self._tokenizer.byte_values.get(token_id)
            if value is not None:
                shown += _REPLACEMENT * self._held + self._bytes.decode(bytes((value,)))
                self._held, self._window = False, (token_id,)
                self._unfinished = len(self._bytes.getstate()[0])
                continue
            if self._unfinished:
                shown += _REPLACEMENT * self._unfinished
                self._unfinished = 0
                self._bytes.reset()
            # The text that follows the window's, which only grows at its end, but for a U+FFFD that may be completed.
            before = self._tokenizer.decode(self._window)
            after = self._tokenizer.decode((*self._window, token_id))
            final = len(before) - self._held
            if after.startswith(before[:final]):
                text = after[final:]
            else:
                text = _REPLACEMENT * self._held + self._tokenizer.decode((token_id,))
            self._held = text.endswith(_REPLACEMENT)
            # ByT5 shows nothing, where others show U+FFFD, until a character is complete.
            waits = self._held or not text
            self._window = (*self._window[-2:], token_id) if waits else (token_id,)
            shown += text.removesuffix(_REPLACEMENT)
        return shown + _REPLACEMENT * (self._held + self._unfinished) if last else shown


class StopScanner:
    """Ends one answer before its first stop string, and holds back only text that may be the beginning of one.

    The text counts as read character by character, however it is cut: the stop that is complete first wins; of several
    that end together, the one that began first.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def feed(self, text: str, last: bool = False) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop was found: then the answer has ended. After the `last`
        text nothing is held back."""
        text = self._held + text
        places = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if places:
            self._held = ""
            return text[: min(places)[1]], True
        shown = len(text) if last else max(0, len(text) - self._longest)
        while shown < len(text) and not any(stop.startswith(text[shown:]) for stop in self._stops):
            shown += 1
        self._held = text[shown:]
        return text[:shown], False
